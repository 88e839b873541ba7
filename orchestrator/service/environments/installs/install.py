"""An install as it is asked for: a mount of the type `install_mount`, which is an extension of ours."""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from orchestrator.service.errors import BadRequest, SandboxError
from orchestrator.service.sandbox.egress.rules import check_hosts
from orchestrator.service.sandbox.provider import HOME

MOUNT: Final = "install_mount"
MAX_KEY: Final = 200


class InstallFailed(SandboxError):
    """An install could not be made; the message says why, in words for the devbox that needed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Install:
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
        """Raises BadRequest naming what of the mount is wrong; `where` is where it was."""
        key, script, prefix = (_text(where, name, mount.get(name)) for name in ("key", "script", "prefix"))
        environment = _environment(where, mount.get("environment") or {})
        if len(key) > MAX_KEY:
            raise BadRequest(f"{where}.key: at most {MAX_KEY} characters.")
        if posixpath.normpath(prefix) != prefix or not prefix.startswith(f"{HOME}/"):
            raise BadRequest(f"{where}.prefix: expected a folder below {HOME}, got {prefix!r}.")
        hosts = _hosts(where, mount.get("hosts") or [])
        return cls(key=key, script=script, prefix=prefix, environment=environment, hosts=hosts)


def _text(where: str, name: str, text: Any) -> str:
    if not isinstance(text, str) or not text or "\0" in text:
        raise BadRequest(f"{where}.{name}: an {MOUNT} needs it, as text.")
    return text


def _hosts(where: str, hosts: Any) -> tuple[str, ...]:
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        raise BadRequest(f"{where}.hosts: expected a list of hosts.")
    try:
        check_hosts(hosts)
    except ValueError as error:
        raise BadRequest(f"{where}.hosts: {error}.") from None
    return tuple(hosts)


def _environment(where: str, environment: Any) -> Mapping[str, str]:
    is_usable = isinstance(environment, dict) and all(
        isinstance(value, str) and name and "=" not in name and "\0" not in name + value
        for name, value in environment.items()
    )
    if not is_usable:
        raise BadRequest(f"{where}.environment: expected names with texts.")
    return dict(environment)
