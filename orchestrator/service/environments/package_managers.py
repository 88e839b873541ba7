"""The settings of npm, pip and uv on this machine: indexes, proxies and certificates, for the box that installs.

An install that works for the user in a terminal should work there too. The settings may hold tokens: they are for the
box that makes a layer, where nothing runs but the agent's own script, and for no other; places to write to are left
out, for there they are elsewhere. Files are shown as copies, because they are often readable by their owner only,
who is a stranger in a box. In all other boxes those that lie in /usr are covered. Boxes of images in which agents' code
runs have no login, and of the settings indexes and certificates alone. Functions that are not asynchronous
block; call them from a worker thread.

npm and pip write where a package came from, and some write the login with it; every agent could read them. So tokens
are overwritten in what an install made.
"""

import base64
import configparser
import mmap
import os
import re
import shutil
import socket
import stat
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote, urlsplit

import structlog

from orchestrator.service.sandbox.closure import SETTINGS
from orchestrator.service.sandbox.commands import Finished, run
from orchestrator.service.sandbox.egress.addresses import is_public
from orchestrator.service.sandbox.egress.rules import Rule
from orchestrator.service.sandbox.folders import OWN
from orchestrator.service.sandbox.provider import HOME, Bind, Box, Command
from orchestrator.service.sandbox.safe_fs import remove

#: Where in the box the machine's own settings are, beside those of the user.
MACHINE: Final = "/run/settings"
_FILES: Final[Mapping[str, str]] = {
    "/etc/pip.conf": f"{MACHINE}/pip/pip.conf",
    "/etc/uv/uv.toml": f"{MACHINE}/uv/uv.toml",
    "~/.npmrc": f"{HOME}/.npmrc",
    "~/.pip/pip.conf": f"{HOME}/.pip/pip.conf",
    "~/.config/pip/pip.conf": f"{HOME}/.config/pip/pip.conf",
    "~/.config/uv/uv.toml": f"{HOME}/.config/uv/uv.toml",
}
#: Settings in folders of programs, which every box sees.
_IN_PREFIX: Final = (
    *("etc/npmrc", "etc/pip.conf", "pip.conf", "uv.toml", "etc/uv/uv.toml", ".condarc", "condarc"),
    *("lib/node_modules/npm/npmrc", "share/nodejs/npm/npmrc", "share/npm/npmrc", "share/npm/etc/npmrc"),
)
_TOOLS: Final = ("PIP_", "NPM_CONFIG_", "UV_")
_OTHERS: Final = frozenset(
    {
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
    }
)
#: Of the tools' own: where they write, what they take for the environment that they run in, and proxies, for in the box
#: there is but one.
_LEFT_OUT: Final = re.compile(
    r"(PIP_(TARGET|PREFIX|ROOT|USER|SRC|LOG|REQUIRE_VIRTUALENV|PYTHON|REPORT|PROXY))"
    r"|(NPM_CONFIG_(PREFIX|GLOBAL_PREFIX|LOCAL_PREFIX|USERCONFIG|GLOBALCONFIG|LOGS_DIR|TMP|NODE_GYP|USER_AGENT))"
    r"|(NPM_CONFIG_(PROXY|HTTPS?_PROXY|NOPROXY))"
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
#: apt's settings, and those of them that say how to reach package mirrors.
_APT: Final = Path("/etc/apt/apt.conf.d")
_APT_LINES: Final = re.compile(r"^\s*(Acquire::[\w:.-]*(?:Proxy|CaInfo|Verify)[\w:.-]*\s+\"[^\"]*\";)", re.MULTILINE)
_COMMENT: Final = re.compile(r"^\s*[#;].*$", re.MULTILINE)
#: An index, with what may stand before its host: `https://name:word@host:port/`, and npm's `//host/:_authToken=`.
_HOST: Final = re.compile(r"(?<![\w./:])(?:https?:)?//(?:([^\s/@'\"]+)@)?(\[[\da-fA-F:.]+\]|[\w.-]+)(:\d+)?")
_LOOPBACK: Final = re.compile(r"(^|//|@)(localhost|127\.[\d.]+|\[::1\])(:|/|$)")
#: Hosts that pip and uv may get from without a certificate: they are asked for files, too.
_TRUSTED: Final = re.compile(
    r"(?:trusted|allow-insecure|insecure)[_-]host\s*=\s*(\[[^\]]*\]|[^\n]+(?:\n[ \t]+[^\n]+)*)", re.IGNORECASE
)
_PROXY: Final = re.compile(r"""^\s*(?:all_)?(?:https?[-_])?proxy\s*=\s*["']?([^\s"']+)""", re.IGNORECASE | re.MULTILINE)
#: The same in the environment, the tools' own first.
_PROXIES: Final = (
    *("npm_config_https_proxy", "npm_config_proxy", "pip_proxy"),
    *("https_proxy", "http_proxy", "all_proxy"),
)
_BYPASS: Final = re.compile(r"^\s*no-?proxy\s*=\s*([^\n]+)", re.IGNORECASE | re.MULTILINE)
_BYPASSES: Final = frozenset({"no_proxy", "npm_config_noproxy"})
#: pip asks another index than its own; `extra-index-url` only adds one.
_OWN_INDEX: Final = re.compile(r"^\s*(?:PIP_)?(?:index[-_]url|no[-_]index)\s*=", re.IGNORECASE | re.MULTILINE)
#: npm's ways to log in.
_TOKEN: Final = re.compile(r"(?:_auth|_?authToken|password|token)\s*=\s*[\"']?([^\s\"']+)", re.IGNORECASE)
#: What any program in a box may know of the settings: indexes, and which certificates are trusted; and with this
#: machine's network its proxies.
_OPEN: Final = frozenset(
    {
        *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_CERT", "NPM_CONFIG_REGISTRY"),
        *("UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_INSECURE_HOST"),
        *("NPM_CONFIG_CAFILE", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    }
)
_OPEN_PROXIES: Final = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})
#: Of these, such as name hosts.
_NAMES: Final = frozenset({"PIP_TRUSTED_HOST", "UV_INSECURE_HOST", "NO_PROXY"})
#: Characters of a secret at least; shorter words may be anything.
_SECRET_CHARS: Final = 12
_ASK_LIMIT_S: Final = 60
#: Prints npm's index.
_NPM: Final = "npm config get registry"
#: Prints pip's index, which is in its code; Python brings that along for new environments where it has no pip itself.
#: uv has the same.
_PIP: Final = """\
import ensurepip, glob, importlib.util, os, sys, sysconfig
if importlib.util.find_spec("pip") is None:
    bundled = os.path.join(os.path.dirname(ensurepip.__file__), "_bundled")
    for folder in (sysconfig.get_config_var("WHEEL_PKG_DIR"), bundled, "/usr/share/python-wheels"):
        sys.path += glob.glob(f"{folder}/pip-*.whl")
from pip._internal.models.index import PyPI
print(PyPI.url)
print(f"//{PyPI.file_storage_domain}/")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Variables, and files and folders that are seen in the box, and what they say.

    `hosts` are rules for the hosts that they name; `proxy` is the machine's own way out, `bypass` what is not reached
    by it. `has_index` says that pip is to ask none but these. `secrets` are what must be left in no layer.
    """

    variables: Mapping[str, str]
    binds: tuple[Bind, ...]
    hosts: tuple[str, ...] = ()
    proxy: str | None = field(default=None, repr=False)
    bypass: str = ""
    has_index: bool = False
    secrets: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def is_on_this_machine(self) -> bool:
        """True if an index or proxy is on this machine's loopback."""
        named = (*self.hosts, *([self.proxy] if self.proxy else []))
        return any(_LOOPBACK.search(each) for each in named)

    @classmethod
    def of_this_machine(cls, copies: Path) -> Self:
        """Read those of the process's environment and its user; files are copied into the new folder `copies`."""
        copies.mkdir()
        variables = {
            name: value
            for name, value in os.environ.items()
            if (upper := name.upper()) in _OTHERS or (upper.startswith(_TOOLS) and not _LEFT_OUT.fullmatch(upper))
        }
        files = {Path(name).expanduser(): target for name, target in _FILES.items()}
        found = {source: target for source, target in files.items() if _is_readable(source)}
        covered = [place for place in _in_prefixes() if _is_readable(place)]
        written = [source.read_text(errors="replace") for source in (*found, *covered)]
        texts = [_COMMENT.sub("", text) for text in written] + [f"{name}={value}" for name, value in variables.items()]

        binds = []
        shown = {**found, **{place: os.fspath(place) for place in _named([*variables.values(), *written])}}
        for number, (source, target) in enumerate(shown.items()):
            copy = source
            if not source.is_dir():
                copy = copies / f"{number}"
                shutil.copyfile(source, copy)
                copy.chmod(0o644)
            binds.append(Bind(source=copy, target=target))

        given = {name.lower(): value for name, value in os.environ.items()}
        proxies = chain(chain.from_iterable(map(_PROXY.findall, texts)), (given.get(name, "") for name in _PROXIES))
        bypass = list(chain.from_iterable(map(_BYPASS.findall, texts)))
        bypass += [value for name, value in os.environ.items() if name.lower() in _BYPASSES]
        return cls(
            variables={**variables, **_CACHES, "XDG_CONFIG_DIRS": MACHINE},
            binds=tuple(binds),
            hosts=tuple(dict.fromkeys(chain.from_iterable(_hosts(_PROXY.sub("", text)) for text in texts))),
            proxy=next((url for url in proxies if url and url.lower() not in {"null", "none", "false"}), None),
            bypass=",".join(bypass),
            has_index=any(_OWN_INDEX.search(text) for text in texts),
            secrets=tuple(dict.fromkeys(chain.from_iterable(map(_secrets, texts)))),
        )

    @classmethod
    def in_image(cls, copies: Path) -> Self:
        """Read those of this machine for a box of an image, which has nothing of the machine and where root is at home.

        Files of the machine that settings name, certificates first of all, are shown below one folder of ours, and the
        settings name them there. Raises OSError.
        """
        own = cls.of_this_machine(copies)
        shown: dict[str, str] = {}
        binds = []
        for name in dict.fromkeys(match[0] for value in own.variables.values() for match in _PATH.finditer(value)):
            place = Path(name)
            if _is_readable(place) and any(place.is_relative_to(folder) for folder in _MACHINES):
                copy = copies / f"named-{len(shown)}"
                shutil.copyfile(place, copy)
                copy.chmod(0o644)
                shown[name] = f"{MACHINE}/named/{len(shown)}-{place.name}"
                binds.append(Bind(source=copy, target=shown[name]))
        variables = {
            name: _PATH.sub(lambda match: shown.get(match[0], match[0]), value)
            for name, value in own.variables.items()
            if not (Path(value).is_dir() and any(Path(value).is_relative_to(folder) for folder in _MACHINES))
        }
        apt = [
            line
            for file in sorted(_APT.glob("*"))
            if _is_readable(file)
            for line in _APT_LINES.findall(file.read_text())
        ]
        if "SSL_CERT_FILE" in variables:
            apt.append(f'Acquire::https::CaInfo "{variables["SSL_CERT_FILE"]}";')
        if apt:
            (copies / "apt.conf").write_text("".join(f"{line}\n" for line in apt))
            (copies / "apt.conf").chmod(0o644)
            binds.append(Bind(source=copies / "apt.conf", target=f"{MACHINE}/apt.conf"))
            variables["APT_CONFIG"] = f"{MACHINE}/apt.conf"
        at_home = [replace(bind, target=re.sub(f"^{re.escape(HOME)}/", "/root/", bind.target)) for bind in own.binds]
        for bind in at_home:
            if not bind.source.is_dir() and bind.source.parent == copies:
                text = bind.source.read_text(errors="replace")
                bind.source.write_text(_PATH.sub(lambda match: shown.get(match[0], match[0]), text))
        return replace(own, variables=variables, binds=(*at_home, *binds))

    @classmethod
    def without_logins(cls, folder: Path, *, has_machines_network: bool) -> Self:
        """Read what agents' code may know in a box of an image that has the internet, or this machine's network.

        An index that takes a login is left out, and so is one that a box does not reach from a network of its own.
        Certificates are copied into `folder`, which is made anew and shown below our own folder. Raises OSError.
        """
        remove(folder)
        folder.mkdir()
        folder.chmod(0o755)

        def shown(word: str, name: str) -> str | None:
            """Return the word as the box has it, None if it has it not."""
            place = Path(word.removeprefix("file://"))
            if place.is_absolute():
                return _copy_certificates(place, folder)
            if "://" not in word:
                return word if name in _NAMES else None
            parts = urlsplit(word)
            is_open = parts.scheme in {"http", "https"} and parts.hostname and "@" not in parts.netloc
            return word if is_open and (has_machines_network or _is_on_internet(parts.hostname or "")) else None

        variables = {}
        wanted = _OPEN | _OPEN_PROXIES if has_machines_network else _OPEN
        for name, value in {**_written(), **os.environ}.items():
            if name.upper() in wanted:
                words = [shown(word, name.upper()) for word in re.split(r"[\s,]+", value)]
                if kept := ("," if "," in value else " ").join(filter(None, words)):
                    variables[name] = kept
        if "SSL_CERT_FILE" in variables:
            (folder / "apt.conf").write_text(f'Acquire::https::CaInfo "{variables["SSL_CERT_FILE"]}";\n')
            (folder / "apt.conf").chmod(0o644)
            variables["APT_CONFIG"] = f"{SETTINGS}/apt.conf"
        return cls(variables=variables, binds=(Bind(source=folder, target=SETTINGS),) if variables else ())

    @classmethod
    def empty(cls, nothing: Path) -> Self:
        """Make those for a box that runs programs of a scenario; `nothing` becomes an empty file. Raises OSError."""
        return cls(variables=_CACHES, binds=covers(nothing))

    def for_programs(self, path: str) -> Self:
        """Return those for other programs than the machine's own, found by `path`. Blocking.

        The settings that the machine's npm finds beside itself are named to the other one.
        """
        variables = {**self.variables, "PATH": path}
        found = [place for place in _in_prefixes() if place.match("etc/npmrc") and _is_readable(place)]
        if found:
            variables["npm_config_globalconfig"] = os.fspath(found[0])
        return replace(self, variables=variables)

    async def index_hosts(self, box: Box) -> tuple[str, ...]:
        """Return rules for the hosts of package indexes: those that are named here, and the tools' own. Raises BoxDied.

        The tools know their own best, and are asked in the box that installs, with what it has of the settings. A tool
        that the machine does not have has none.
        """
        questions: list[tuple[str, ...]] = [("sh", "-c", _NPM)]
        if not self.has_index:
            questions.append(("python3", "-I", "-c", _PIP))
        hosts = list(self.hosts)
        for argv in questions:
            command = Command(argv=argv, cwd=HOME, environment=self.variables, is_plain=True)
            finished = await run(box, command, timeout=_ASK_LIMIT_S)
            if finished.status == 0:
                hosts += _hosts(finished.stdout.decode(errors="replace"))
        return tuple(dict.fromkeys(hosts))

    def masked(self, finished: Finished) -> Finished:
        """Return what a program printed with the secrets overwritten."""
        stdout, stderr = finished.stdout, finished.stderr
        for secret in self.secrets:
            stdout, stderr = (each.replace(secret, b"*" * len(secret)) for each in (stdout, stderr))
        return replace(finished, stdout=stdout, stderr=stderr)

    def strike_out(self, tree: Path) -> None:
        """Overwrite the secrets in all files of a tree that no process writes in. Raises OSError.

        A token is overwritten in place, letter by letter, so that no file changes its length.
        """
        for folder, folders, files in os.walk(tree) if self.secrets else ():
            for place in (Path(folder, name) for name in (*folders, *files)):
                mode = place.lstat().st_mode
                if stat.S_ISLNK(mode) and any(secret in os.fsencode(place.readlink()) for secret in self.secrets):
                    place.unlink()
                if not stat.S_ISREG(mode) or not place.stat().st_size:
                    continue
                place.chmod(mode | 0o600)
                try:
                    with place.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as data:
                        for secret in self.secrets:
                            at = data.find(secret)
                            while at >= 0:
                                data[at : at + len(secret)] = b"*" * len(secret)
                                structlog.get_logger().warning("install.token_struck_out", file=str(place), at=at)
                                at = data.find(secret, at + len(secret))
                finally:
                    place.chmod(stat.S_IMODE(mode))


def _written() -> Mapping[str, str]:
    """Return what the files of pip, npm and uv say, as variables that say the same."""
    found: dict[str, str] = {}
    for file in filter(_is_readable, (Path(name).expanduser() for name in _FILES)):
        text = file.read_text(errors="replace")
        with suppress(configparser.Error, tomllib.TOMLDecodeError):
            if file.name == "pip.conf":
                parser = configparser.ConfigParser(strict=False, interpolation=None)
                parser.read_string(text)
                sections = [dict(parser[each]) for each in ("global", "install") if each in parser]
                found |= {_variable("PIP", key): value for each in sections for key, value in each.items()}
            elif file.name == "uv.toml":
                said = tomllib.loads(text)
                found |= {
                    _variable("UV", key): _words(said[key]) for key in ("index-url", "extra-index-url") if key in said
                }
                tables = [each for each in said.get("index", ()) if "url" in each]
                for name, is_default in (("UV_DEFAULT_INDEX", True), ("UV_INDEX", False)):
                    found[name] = _words([each["url"] for each in tables if each.get("default", False) == is_default])
            else:
                lines = (line.partition("=") for line in _COMMENT.sub("", text).splitlines())
                found |= {_variable("NPM_CONFIG", key.strip()): value.strip().strip("\"'") for key, _, value in lines}
    return found


def _variable(tool: str, key: str) -> str:
    return f"{tool}_{key.upper().replace('-', '_')}"


def _words(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " ".join(value)


def _copy_certificates(place: Path, folder: Path) -> str | None:
    """Copy a file of certificates for boxes, and return its path there; None for what is none, or has a key in it."""
    if (
        not _is_readable(place)
        or b"-----BEGIN CERTIFICATE" not in (data := place.read_bytes())
        or b"PRIVATE KEY" in data
    ):
        return None
    copy = folder / f"{sha256(data).hexdigest()[:12]}.pem"
    copy.write_bytes(data)
    copy.chmod(0o644)
    return f"{SETTINGS}/{copy.name}"


def _is_on_internet(host: str) -> bool:
    """Tell whether a host has a public address."""
    with suppress(OSError, ValueError):
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
        return any(is_public(ip_address(address[0])) for *_, address in found)
    return False


def covers(nothing: Path) -> tuple[Bind, ...]:
    """Hide settings that lie in folders of programs from a box; `nothing` becomes an empty file.

    Raises OSError.
    """
    nothing.write_bytes(b"")
    nothing.chmod(0o644)
    return tuple(Bind(source=nothing, target=os.fspath(place)) for place in _in_prefixes())


def _in_prefixes() -> list[Path]:
    shown = (Path("/usr"), Path(sys.base_prefix).resolve())
    prefixes = dict.fromkeys((*shown, Path("/usr/local")))
    places = [prefix / name for prefix in prefixes for name in _IN_PREFIX]
    found = dict.fromkeys(place.resolve() for place in places if place.is_file())
    return [place for place in found if any(place.is_relative_to(prefix) for prefix in shown)]


def _is_readable(file: Path) -> bool:
    return file.is_file() and os.access(file, os.R_OK)


def _hosts(text: str) -> Iterator[str]:
    """Yield rules for the hosts that a text names."""
    named = [f"{host}{port}" for _, host, port in _HOST.findall(text)]
    trusted = [re.split(r"[\s,]+", hosts.strip("[]")) for hosts in _TRUSTED.findall(text)]
    for host in (*named, *(each.strip("\"'") for each in chain.from_iterable(trusted))):
        try:
            Rule.parse(host)
        except ValueError:
            continue
        yield host


def _secrets(text: str) -> Iterator[bytes]:
    """Yield the parts of a text that grant access, in the forms in which programs write them."""
    for login, _, _ in _HOST.findall(text):
        if login:
            plain = unquote(login)
            yield from (f"{login}@".encode(), base64.b64encode(plain.encode()).rstrip(b"="))
            if len(word := plain.partition(":")[2]) >= _SECRET_CHARS:
                yield word.encode()
    for token in _TOKEN.findall(text):
        if len(token) >= _SECRET_CHARS and not token.startswith("${"):
            yield token.encode()


def _named(texts: Iterable[str]) -> list[Path]:
    """Return files and folders of this machine that settings name: certificates, folders of packages.

    A copy of a package index is a folder `simple` with pages, which lead to files in another folder beside it.
    """
    named: set[Path] = set()
    for match in chain.from_iterable(map(_PATH.finditer, texts)):
        place = Path(os.path.normpath(match[0]))
        named |= {place, place.parent} if place.name == "simple" else {place}
    home = Path.home()
    usable = {
        place
        for place in named
        if place not in _BOXES
        and not home.is_relative_to(place)
        and not any(place.is_relative_to(own) for own in _MACHINES)
        and os.access(place, os.R_OK)
        and (place.is_dir() or place.is_file())
    }
    return sorted(place for place in usable if usable.isdisjoint(place.parents))
