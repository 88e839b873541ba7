"""An install as a client asks for it: a mount of the type `install_mount`, which is an extension of ours."""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from orchestrator.service.errors import BadRequest, SandboxError
from orchestrator.service.sandbox.egress.rules import check_hosts
from orchestrator.service.sandbox.provider import HOME

MOUNT: Final = "install_mount"
MAX_KEY_CHARS: Final = 200


class InstallFailed(SandboxError):
    """An install could not be made; the message says why, in words for the devbox that needed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallRequest:
    """A shell script that puts software below the folder `prefix`, its $SWEEP_AGENT_PREFIX.

    Two with one `key` have the same result where they start from the same. `hosts` are what it may reach beside the
    package indexes of this machine.
    """

    key: str
    script: str
    prefix: str
    environment: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()

    @classmethod
    def read(cls, where: str, mount: Mapping[str, Any]) -> Self:
        """Read a mount that was found at `where`. Raises BadRequest naming the field that is wrong."""
        texts = {name: mount.get(name) for name in ("key", "script", "prefix")}
        for name, text in texts.items():
            if not isinstance(text, str) or not text or "\0" in text:
                raise BadRequest(f"{where}.{name}: an {MOUNT} needs it, as text.")
        key, script, prefix = map(str, texts.values())

        environment = mount.get("environment") or {}
        if not isinstance(environment, dict) or not all(
            isinstance(value, str) and name and "=" not in name and "\0" not in name + value
            for name, value in environment.items()
        ):
            raise BadRequest(f"{where}.environment: expected names with texts.")
        if len(key) > MAX_KEY_CHARS:
            raise BadRequest(f"{where}.key: at most {MAX_KEY_CHARS} characters.")
        if posixpath.normpath(prefix) != prefix or not prefix.startswith(f"{HOME}/"):
            raise BadRequest(f"{where}.prefix: expected a folder below {HOME}, got {prefix!r}.")

        hosts = mount.get("hosts") or []
        if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
            raise BadRequest(f"{where}.hosts: expected a list of hosts.")
        try:
            check_hosts(hosts)
        except ValueError as error:
            raise BadRequest(f"{where}.hosts: {error}.") from None
        return cls(key=key, script=script, prefix=prefix, environment=dict(environment), hosts=tuple(hosts))
