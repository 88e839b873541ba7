"""What npm, pip and uv of this machine know of mirrors, proxies and certificates, for the box that installs.

An install that works for the user in a terminal should work there too. The settings may hold tokens: they are for the
box that makes a layer and for no other, and what they say of where to write is left out, for there it is elsewhere.
Files are shown as copies, because they are often readable by their owner only, who is a stranger in a box.
Blocking; call from a worker thread.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from orchestrator.service.devboxes.contract import HOME, Bind
from orchestrator.service.devboxes.folders import OWN

#: Where in the box the machine's own settings are, beside those of the user.
_MACHINE: Final = "/run/settings"
_FILES: Final[Mapping[str, str]] = {
    "/etc/pip.conf": f"{_MACHINE}/pip/pip.conf",
    "/etc/uv/uv.toml": f"{_MACHINE}/uv/uv.toml",
    "~/.npmrc": f"{HOME}/.npmrc",
    "~/.pip/pip.conf": f"{HOME}/.pip/pip.conf",
    "~/.config/pip/pip.conf": f"{HOME}/.config/pip/pip.conf",
    "~/.config/uv/uv.toml": f"{HOME}/.config/uv/uv.toml",
}
_TOOLS: Final = ("PIP_", "NPM_CONFIG_", "UV_")
_OTHERS: Final = frozenset(
    {
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
    }
)
#: Of the tools' own: where they write, and what they take for the environment that they run in.
_LEFT_OUT: Final = re.compile(
    r"(PIP_(TARGET|PREFIX|ROOT|USER|SRC|LOG|REQUIRE_VIRTUALENV|PYTHON|REPORT))"
    r"|(NPM_CONFIG_(PREFIX|GLOBAL_PREFIX|LOCAL_PREFIX|USERCONFIG|GLOBALCONFIG|LOGS_DIR|TMP|NODE_GYP|USER_AGENT))"
    r"|(UV|UV_(PROJECT.*|PYTHON.*|TOOL_.*|RUN_.*|WORKING.*|LINK_MODE|INTERNAL.*))"
)
#: Downloads are not worth keeping beside what was made of them.
_CACHES: Final[Mapping[str, str]] = {
    "npm_config_cache": "/tmp/.cache/npm",  # noqa: S108 - of the box
    "PIP_CACHE_DIR": "/tmp/.cache/pip",  # noqa: S108
    "UV_CACHE_DIR": "/tmp/.cache/uv",  # noqa: S108
}
_PATH: Final = re.compile(r"(?:(?<=file://)|(?<![\w.:/~@%-]))/[\w.+@%/-]*\w")
#: What a box sees of the machine anyway, or may never see; and folders that it has itself.
_MACHINES: Final = tuple(
    map(Path, ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/dev", "/proc", "/sys", "/run"))
)
_BOXES: Final = frozenset(map(Path, ("/", "/home", *OWN)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Variables, and files and folders that are seen in the box."""

    variables: Mapping[str, str]
    binds: tuple[Bind, ...]

    @classmethod
    def of_this_machine(cls, copies: Path) -> "Settings":
        """Those of the process's environment and its user; copies of files are made in the empty folder `copies`."""
        variables = {name: value for name, value in os.environ.items() if _is_setting(name)}
        files = {Path(name).expanduser(): target for name, target in _FILES.items()}
        found = {source: target for source, target in files.items() if source.is_file() and os.access(source, os.R_OK)}
        texts = [*variables.values(), *(source.read_text(errors="replace") for source in found)]
        named = {place: os.fspath(place) for place in _outermost(_named(texts))}
        binds = [Bind(source=_shown(source, copies), target=target) for source, target in {**found, **named}.items()]
        return cls(variables={**variables, **_CACHES, "XDG_CONFIG_DIRS": _MACHINE}, binds=tuple(binds))


def _is_setting(name: str) -> bool:
    upper = name.upper()
    return upper in _OTHERS or (upper.startswith(_TOOLS) and _LEFT_OUT.fullmatch(upper) is None)


def _named(texts: Iterable[str]) -> Iterator[Path]:
    """Files and folders of this machine that settings speak of: certificates, folders of packages."""
    home = Path.home()
    matches = chain.from_iterable(map(_PATH.finditer, texts))
    for place in chain.from_iterable(_with_files(Path(os.path.normpath(match[0]))) for match in matches):
        if place in _BOXES or home.is_relative_to(place) or any(place.is_relative_to(own) for own in _MACHINES):
            continue
        if os.access(place, os.R_OK) and (place.is_dir() or place.is_file()):
            yield place


def _with_files(place: Path) -> tuple[Path, ...]:
    """A copy of a package index is a folder `simple` with pages, which lead to files in another folder beside it."""
    return (place, place.parent) if place.name == "simple" else (place,)


def _outermost(places: Iterable[Path]) -> list[Path]:
    every = set(places)
    return sorted(place for place in every if every.isdisjoint(place.parents))


def _shown(source: Path, copies: Path) -> Path:
    if source.is_dir():
        return source
    copy = copies / f"{len(list(copies.iterdir()))}"
    shutil.copyfile(source, copy)
    copy.chmod(0o644)
    return copy
