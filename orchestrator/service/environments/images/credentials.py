"""Names and passwords for registries, from the files and helper programs that Docker and Podman use.

Its secret: where they look. `DOCKER_CONFIG/config.json`, `~/.docker/config.json`, then Podman's
`containers/auth.json`; in each, a helper named for the registry goes before the general helper, and that before what
the file itself holds. A helper is `docker-credential-NAME get`, with the registry on its standard input. They are read
for each registry once, when it asks for them, and never written anywhere.
"""

import base64
import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import structlog

from orchestrator.service.environments.images.reference import DOCKER_HUB

#: How docker.io is called in these files.
_HUB_KEYS: Final = ("https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io")
_HELPER_LIMIT_S: Final = 30
#: A helper says by this name that its password is a token to be exchanged for others (OAuth2).
TOKEN_USER: Final = "<token>"  # noqa: S105 - no password


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A name and a password, or an identity token."""

    user: str
    password: str = field(repr=False)

    @property
    def is_token(self) -> bool:
        return self.user == TOKEN_USER


class Credentials:
    """Logins by registry, from `files`; those that are not there are skipped."""

    def __init__(self, files: tuple[Path, ...] | None = None) -> None:
        if files is None:
            home = Path(os.environ.get("HOME") or "/nonexistent")
            folders = [Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")]
            if runtime := os.environ.get("XDG_RUNTIME_DIR"):
                folders.insert(0, Path(runtime))
            docker = Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
            files = (docker, *(folder / "containers/auth.json" for folder in folders))
        self._files = files
        self._found: dict[str, Login | None] = {}
        self._lock = anyio.Lock()

    async def of(self, registry: str) -> Login | None:
        """Return the login for a registry, such as docker.io or host:5000; None if there is none."""
        async with self._lock:
            if registry not in self._found:
                self._found[registry] = await self._look(registry)
            return self._found[registry]

    async def _look(self, registry: str) -> Login | None:
        keys = (registry, f"https://{registry}", *(_HUB_KEYS if registry == DOCKER_HUB else ()))
        for file in self._files:
            try:
                settings = json.loads(await anyio.Path(file).read_bytes())
                helpers, auths = settings.get("credHelpers", {}), settings.get("auths", {})
                for key in keys:
                    helper = helpers.get(key) or settings.get("credsStore")
                    if helper and (login := await _ask(str(helper), key)) is not None:
                        return login
                    if key in auths and (login := _read(auths[key])) is not None:
                        return login
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
                structlog.get_logger().warning("image.credentials_unreadable", file=str(file), error=str(error))
        return None


def _read(entry: Mapping[str, Any]) -> Login | None:
    """Read an entry of `auths`. Raises ValueError, TypeError and AttributeError for a damaged one."""
    if entry.get("identitytoken"):
        return Login(user=TOKEN_USER, password=str(entry["identitytoken"]))
    if entry.get("auth"):
        user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        return Login(user=user, password=password.rstrip("\0"))
    if entry.get("username"):
        return Login(user=str(entry["username"]), password=str(entry.get("password", "")))
    return None


async def _ask(helper: str, key: str) -> Login | None:
    """Ask a helper program; None if it is not there or knows nothing."""
    if "/" in helper:
        raise ValueError(f"{helper!r} is not the name of a helper")
    with suppress(TimeoutError, FileNotFoundError, PermissionError), anyio.fail_after(_HELPER_LIMIT_S):
        done = await anyio.run_process(
            [f"docker-credential-{helper}", "get"], input=key.encode(), check=False, stderr=subprocess.DEVNULL
        )
        if done.returncode == 0:
            found = json.loads(done.stdout)
            return Login(user=str(found["Username"]), password=str(found["Secret"]))
    return None
