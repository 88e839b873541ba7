"""Making one layer: the script runs in a box of its own, and what it left below its prefix is taken out.

The script is the agent's author's, as it would be in a terminal, and so are the scripts of the packages that it names.
The rule for what it gets: this machine's settings of package managers are in a box where nothing is a scenario's, no
program, no file and no variable; a box that has a scenario's programs gets none of them, and reaches the tools' own
indexes alone. Either box goes out by the proxy, to the hosts that the settings and the agent's file name; a token that
was written into the layer is struck out. What an agent does later runs elsewhere and sees none of them.

A scenario could bring anything: a login file that steals what the script is given, settings of npm or pip that send it
elsewhere. So nothing of its HOME is taken but the folders that its PATH leads into.
"""

import hashlib
import mmap
import os
import platform
import posixpath
import shutil
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Final, Self

import anyio
import orjson
import structlog
from anyio.to_thread import run_sync

from orchestrator.service.environments.build_cache import Built
from orchestrator.service.environments.installs.request import InstallFailed, InstallRequest
from orchestrator.service.environments.installs.settings import Settings, hosts_named
from orchestrator.service.sandbox.commands import Finished, run
from orchestrator.service.sandbox.egress.addresses import Resolver
from orchestrator.service.sandbox.egress.dialing import Upstream
from orchestrator.service.sandbox.egress.proxy import Egress, EgressVerdict
from orchestrator.service.sandbox.egress.rules import Rules
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import (
    GIB,
    HOME,
    Box,
    BoxDied,
    BoxSpec,
    BoxStartFailed,
    Command,
    Provider,
    Resources,
    shell,
)
from orchestrator.service.sandbox.safe_fs import Copier

INSTALL_LIMIT_S: Final = 3600
BOX_STOP_LIMIT_S: Final = 30
_MKDIR_LIMIT_S: Final = 30
_ASK_LIMIT_S: Final = 60
#: An install needs more than most agents do.
_LEAST: Final = Resources(cpus=2.0, memory=4 * GIB, disk=16 * GIB, processes=4096)
#: Bytes of a script's output in memory, each stream.
_KEPT_BYTES: Final = 32 << 20
#: Characters of its end in a message.
_SHOWN_CHARS: Final = 2000
#: Changes when the same install would be made in another way.
_VERSION: Final = 2
#: Programs of the machine, and where they are looked for.
_PROGRAMS: Final = ("bash", "node", "npm", "python3", "uv")
_PROGRAM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
#: Variables by which an environment brings programs of its own.
_BRINGING: Final = ("PATH", "LD_LIBRARY_PATH")
#: Folders of HOME with settings, whatever PATH says.
_SETTINGS: Final = frozenset({".config", ".npm", ".pip"})
_HOME: Final = HOME.strip("/")
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
class Brought:
    """An environment's programs: its tree `root`, known by `name`, and the variables by which they are found."""

    name: str
    root: Path
    environment: Mapping[str, str]

    @classmethod
    def of(cls, prepared: Prepared) -> Self | None:
        """None for an environment whose PATH leads to nothing of its own. Blocking."""
        environment = {name: prepared.environment[name] for name in _BRINGING if name in prepared.environment}
        root = prepared.root
        if root is None or not any(os.path.lexists(root / folder) for folder in _folders(environment)):
            return None
        return cls(name=prepared.name or str(root), root=root, environment=environment)

    def copy(self, target: Path) -> None:
        """Copy the tree, without what is in HOME beside programs, into the empty folder `target`.

        Blocking. Raises OSError.
        """
        inside = [folder for folder in _folders(self.environment) if folder.startswith(f"{_HOME}/")]
        kept = {folder.removeprefix(f"{_HOME}/").split("/")[0] for folder in inside} - _SETTINGS
        home = self.root / _HOME
        found = list(home.iterdir()) if home.is_dir() else []
        left = [place.name for place in found if place.name not in kept or not place.is_dir()]
        Copier(skip=frozenset(f"{_HOME}/{name}" for name in left)).copy(self.root, target)


def _folders(environment: Mapping[str, str]) -> list[str]:
    """Return the folders of PATH, as paths in a tree."""
    named = [folder for folder in environment.get("PATH", "").split(":") if folder.startswith("/")]
    return [path for folder in named if (path := posixpath.normpath(folder).strip("/")) not in {"", _HOME}]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallBuild:
    """One way to make an install: from the bare machine, or with the programs that an environment `brought`."""

    request: InstallRequest
    brought: Brought | None
    resources: Resources
    provider: Provider
    resolve: Resolver | None = None

    def name(self) -> str:
        """Return the layer's name: a digest of the request and of all that may not change under it. Blocking."""
        found = (shutil.which(program, path=_PROGRAM_PATH) for program in _PROGRAMS)
        programs = [Path(program).resolve() for program in found if program]
        stats = [(os.fspath(program), program.stat().st_size, program.stat().st_mtime_ns) for program in programs]
        system = Path("/etc/os-release")
        release = system.read_text(errors="replace") if system.exists() else platform.platform()
        machine = [platform.machine(), sys.version, sys.base_prefix, release, stats]
        brought = [self.brought.name, dict(self.brought.environment)] if self.brought is not None else []
        known = [_VERSION, self.request.key, self.request.prefix, brought, self.provider.name, machine]
        return hashlib.sha256(orjson.dumps(known, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]

    async def carry_out(self, folder: Path) -> Built:
        """Run the script, with the empty folder `folder` for all files; return the tree that it made.

        Raises InstallFailed in words for the user, and OSError.
        """
        began, base = anyio.current_time(), "" if self.brought is None else self.brought.name
        made = folder / "made"
        await run_sync(made.mkdir)
        settings, root = await run_sync(self._prepare, folder)
        spec = BoxSpec(
            id=f"install-{token_hex(6)}",
            resources=replace(
                self.resources,
                cpus=max(self.resources.cpus, _LEAST.cpus),
                memory=max(self.resources.memory, _LEAST.memory),
                disk=max(self.resources.disk, _LEAST.disk),
                processes=max(self.resources.processes, _LEAST.processes),
            ),
            environment={} if self.brought is None else self.brought.environment,
            root=root,
            binds=settings.binds,
        )
        try:
            box = await self.provider.start(spec)
            try:
                await self._run(box, settings)
                await box.export(made, self.request.prefix)
            finally:
                with anyio.move_on_after(BOX_STOP_LIMIT_S, shield=True):
                    await box.stop()
        except (BoxStartFailed, BoxDied) as error:
            raise InstallFailed(f"its box ended: {error.message}") from error
        tree = await run_sync(self._finish, made, settings)
        seconds = round(anyio.current_time() - began, 3)
        structlog.get_logger().info("install.made", install=self.request.key, base=base, seconds=seconds)
        facts = {"key": self.request.key, "base": base, "made_at": round(time.time(), 3), "seconds": seconds}
        return Built(tree=tree, facts=facts)

    def _prepare(self, folder: Path) -> tuple[Settings, Path | None]:
        """Return the settings that the box gets, and the tree that it starts from."""
        if self.brought is None:
            copies = folder / "settings"
            copies.mkdir()
            return Settings.of_this_machine(copies), None
        root = folder / "brought"
        root.mkdir()
        self.brought.copy(root)
        return Settings.of_nobody(folder / "nothing"), root

    async def _run(self, box: Box, settings: Settings) -> None:
        """Run the script, with its way out. Raises InstallFailed, BoxDied and OSError."""
        try:
            upstream = None if settings.proxy is None else Upstream.parse(settings.proxy, settings.bypass)
        except ValueError as error:
            raise InstallFailed(str(error)) from None
        rules = Rules.parse(self.request.hosts, trusted=await _index_hosts(box, settings))
        egress = Egress(rules, _tell, self.resolve, upstream)
        failed: list[BoxDied | OSError] = []
        async with anyio.create_task_group() as tasks:
            try:
                await tasks.start(egress.serve, box)
                finished = await self._run_script(box, settings, egress)
            except (BoxDied, OSError) as error:  # it leaves as it is, not inside a group
                failed.append(error)
            tasks.cancel_scope.cancel()
        if failed:
            raise failed[0]
        if finished.status == 0:
            return

        ended = f"ended with status {finished.status}"
        if finished.is_timed_out:
            ended = f"ran out of time ({INSTALL_LIMIT_S} s)"
        words = finished.output.strip()[-_SHOWN_CHARS:]
        why = f"its script {ended}\n{words}" if words else f"its script {ended}, and printed nothing"
        if refused := ", ".join(egress.counters.document()["refused"]):
            fix = "name it in [network] hosts of the agent's file, or as a trusted host in your settings of pip"
            why += (
                f"\nIt was not let out to {refused}: no setting of npm, pip or uv names that. If it is needed, {fix}."
            )
        raise InstallFailed(why)

    async def _run_script(self, box: Box, settings: Settings, egress: Egress) -> Finished:
        """Run the script. The proxy is named to each tool, which would else prefer one of a file."""
        prefix = self.request.prefix
        await run(box, Command(argv=("mkdir", "-p", prefix), cwd=HOME, is_plain=True), timeout=_MKDIR_LIMIT_S)
        proxy = egress.variables["http_proxy"]
        environment = {
            **settings.variables,
            **egress.variables,
            **dict.fromkeys(("npm_config_proxy", "npm_config_https_proxy", "PIP_PROXY"), proxy),
            **dict.fromkeys(("no_proxy", "NO_PROXY", "npm_config_noproxy"), ""),
            **self.request.environment,
            "SWEEP_AGENT_PREFIX": prefix,
        }
        command = shell(self.request.script, cwd=HOME, environment=environment)
        return await run(box, command, timeout=INSTALL_LIMIT_S, keep=_KEPT_BYTES)

    def _finish(self, made: Path, settings: Settings) -> Path:
        """Return the folder at the prefix, which no link may stand for, without tokens and readable by all.

        Each devbox has a user of its own, and none of them is the maker's.
        """
        tree, prefix = made, self.request.prefix
        for part in prefix.strip("/").split("/"):
            tree /= part
            if tree.is_symlink() or not tree.is_dir():
                raise InstallFailed(f"its script made {prefix} something else than a folder")
        if not any(tree.iterdir()):
            raise InstallFailed(f"its script put nothing below $SWEEP_AGENT_PREFIX, which is {prefix}")

        _strike_out(tree, settings.secrets)
        tree.chmod(0o755)
        for folder, folders, files in os.walk(tree):
            for path in (Path(folder, name) for name in (*folders, *files)):
                mode = path.lstat().st_mode
                if not stat.S_ISLNK(mode):
                    own = mode & 0o700 | (0o500 if stat.S_ISDIR(mode) else 0o400)
                    path.chmod(own | (own & 0o500) >> 3 | (own & 0o500) >> 6)
        return tree


async def _index_hosts(box: Box, settings: Settings) -> tuple[str, ...]:
    """Return rules for the hosts of package indexes: those that the settings name, and the tools' own. Raises BoxDied.

    The tools know their own best, and are asked in the box that installs, with what it has of the settings. A tool that
    the machine does not have has none.
    """
    questions: list[tuple[str, ...]] = [("sh", "-c", _NPM)]
    if not settings.has_index:
        questions.append(("python3", "-I", "-c", _PIP))
    hosts = list(settings.hosts)
    for argv in questions:
        command = Command(argv=argv, cwd=HOME, environment=settings.variables, is_plain=True)
        finished = await run(box, command, timeout=_ASK_LIMIT_S)
        if finished.status == 0:
            hosts += hosts_named(finished.stdout.decode(errors="replace"))
    return tuple(dict.fromkeys(hosts))


async def _tell(verdict: EgressVerdict, host: str) -> None:
    structlog.get_logger().info("install.egress", verdict=verdict, host=host)


def _strike_out(tree: Path, secrets: Sequence[bytes]) -> None:
    """Overwrite the secrets in all files of a tree that no process writes in. Raises OSError.

    npm and pip write where a package came from, and some write the login with it; every agent could read them. A token
    is overwritten in place, letter by letter, so that no file changes its length.
    """
    if not secrets:
        return
    for folder, folders, files in os.walk(tree):
        for name in (*folders, *files):
            place = Path(folder, name)
            mode = place.lstat().st_mode
            if stat.S_ISLNK(mode) and any(secret in os.fsencode(place.readlink()) for secret in secrets):
                place.unlink()
            elif stat.S_ISREG(mode) and place.stat().st_size:
                _strike_out_of(place, mode, secrets)


def _strike_out_of(file: Path, mode: int, secrets: Sequence[bytes]) -> None:
    file.chmod(mode | 0o600)
    try:
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as data:
            for secret in secrets:
                at = data.find(secret)
                while at >= 0:
                    data[at : at + len(secret)] = b"*" * len(secret)
                    structlog.get_logger().warning("install.token_struck_out", file=str(file), at=at)
                    at = data.find(secret, at + len(secret))
    finally:
        file.chmod(stat.S_IMODE(mode))
