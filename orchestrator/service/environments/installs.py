"""Software that agents need in their devboxes, installed once and shown to every devbox that needs it.

An install is made from the bare machine and its settings, whatever environment asks for it, and all share that layer.
For devboxes of images it is made on the bare machine too, but of our own toolchain, which is shown to them beside it.
Where it cannot be made so, and an environment brings programs on its PATH, it is made once more with these, for that
environment alone and without the settings. A build continues when the devbox that asked for it is gone: the next
attempt finds it done. Its failure is that of all that wait for it, and of none that comes later.

To make a layer, the script runs in a box of its own, and what it left below its prefix is taken out. The script is the
agent's author's, as it would be in a terminal, and so are the scripts of the packages that it names.
The rule for what it gets: this machine's settings of package managers are in a box where nothing is a scenario's, no
program, no file and no variable; a box that has a scenario's programs gets none of them, and reaches the tools' own
indexes alone. Either box goes out by the proxy, to the hosts that the settings and the agent's file name; a token that
was written into the layer is struck out. What an agent does later runs elsewhere and sees none of them.

A scenario could bring anything: a login file that steals what the script is given, settings of npm or pip that send it
elsewhere. So nothing of its HOME is taken but the folders that its PATH leads into.
"""

import hashlib
import os
import platform
import posixpath
import shutil
import stat
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, Self

import anyio
import orjson
import structlog
from anyio.to_thread import run_sync

from orchestrator.service.environments import toolchain
from orchestrator.service.environments.package_managers import Settings
from orchestrator.service.errors import BadRequest, SandboxError
from orchestrator.service.sandbox.build_cache import Built, UserCache
from orchestrator.service.sandbox.closure import TOOLCHAIN
from orchestrator.service.sandbox.commands import Finished, run
from orchestrator.service.sandbox.egress.addresses import Resolver
from orchestrator.service.sandbox.egress.dialing import Upstream
from orchestrator.service.sandbox.egress.proxy import Egress, EgressVerdict
from orchestrator.service.sandbox.egress.rules import Rules, check_hosts
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import (
    GIB,
    HOME,
    Bind,
    Box,
    BoxDied,
    BoxSpec,
    BoxStartFailed,
    Capability,
    Command,
    Provider,
    Resources,
    shell,
)
from orchestrator.service.sandbox.safe_fs import Copier

MOUNT: Final = "install_mount"
MAX_KEY_CHARS: Final = 200
INSTALL_LIMIT_S: Final = 3600
_MKDIR_LIMIT_S: Final = 30
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
_FAILED: Final = "The install step failed"

StartSoon = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]
Tell = Callable[[str], Awaitable[None]]


class InstallFailed(SandboxError):
    """An install could not be made; the message says why, in words for the devbox that needed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallRequest:
    """A shell script that puts software below the folder `prefix`, its $SWEEP_AGENT_PREFIX.

    A client asks for it by a mount of the type `install_mount`, which is an extension of ours. Two with one `key` have
    the same result where they start from the same. `hosts` are what it may reach beside the package indexes of this
    machine.
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


TOOLS: Final = InstallRequest(
    key=hashlib.sha256(toolchain.SCRIPT.encode()).hexdigest(), script=toolchain.SCRIPT, prefix=toolchain.PREFIX
)


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
        """Copy the tree, without what is in HOME beside programs, into the new folder `target`.

        Blocking. Raises OSError.
        """
        target.mkdir()
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
    """One way to make an install: from the bare machine, or with the programs that an environment `brought`.

    For devboxes of images it is made with `tools`: our own Python, and the layer of the toolchain, if there is one yet.
    """

    request: InstallRequest
    brought: Brought | None = None
    tools: tuple[Bind, ...] | None = None
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
        if self.tools is not None:
            known.append([bind.source.parent.name for bind in self.tools])
        return hashlib.sha256(orjson.dumps(known, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]

    async def carry_out(self, folder: Path) -> Built:
        """Run the script, with the empty folder `folder` for all files; return the tree that it made.

        Raises InstallFailed in words for the user, and OSError.
        """
        began, base, root, made = anyio.current_time(), "", None, folder / "made"
        await run_sync(made.mkdir)
        if self.brought is None:
            settings = await run_sync(Settings.of_this_machine, folder / "settings")
            if self.tools is not None:
                settings = await run_sync(settings.for_programs, toolchain.PATH)
        else:
            base, root = self.brought.name, folder / "brought"
            settings = await run_sync(Settings.empty, folder / "nothing")
            await run_sync(self.brought.copy, root)
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
            binds=(*settings.binds, *(self.tools or ())),
            closure=self.tools is not None,
        )
        try:
            box = await self.provider.start(spec)
            try:
                await self._run(box, settings)
                if self.tools is not None:
                    await self._make_independent(box)
                await box.export(made, self.request.prefix)
            finally:
                with anyio.CancelScope(shield=True):
                    await box.stop()
        except (BoxStartFailed, BoxDied) as error:
            raise InstallFailed(f"its box ended: {error.message}") from error
        tree = await run_sync(self._finish, made, settings)
        seconds = round(anyio.current_time() - began, 3)
        structlog.get_logger().info("install.made", install=self.request.key, base=base, seconds=seconds)
        facts = {"key": self.request.key, "base": base, "made_at": round(time.time(), 3), "seconds": seconds}
        return Built(tree=tree, facts=facts)

    async def _run(self, box: Box, settings: Settings) -> None:
        """Run the script, with its way out. Raises InstallFailed, BoxDied and OSError."""
        try:
            upstream = None if settings.proxy is None else Upstream.parse(settings.proxy, settings.bypass)
        except ValueError as error:
            raise InstallFailed(str(error)) from None
        refused: list[str] = []

        async def tell(verdict: EgressVerdict, host: str) -> None:
            structlog.get_logger().info("install.egress", verdict=verdict, host=host)
            if verdict == "refused":
                refused.append(host)

        rules = Rules.parse(self.request.hosts, trusted=await settings.index_hosts(box))
        egress = Egress(rules, tell, self.resolve, upstream)
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
        if refused:
            why += (
                f"\nIt was not let out to {', '.join(refused)}: no setting of npm, pip or uv names that. If it is "
                "needed, name it in [network] hosts of the agent's file, or as a trusted host in your settings of pip."
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
        return settings.masked(await run(box, command, timeout=INSTALL_LIMIT_S, keep=_KEPT_BYTES))

    async def _make_independent(self, box: Box) -> None:
        """Raises InstallFailed, BoxDied and OSError."""
        command = await run_sync(toolchain.make_independent, self.request.prefix)
        finished = await run(box, command, timeout=INSTALL_LIMIT_S)
        if finished.status != 0:
            raise InstallFailed(f"its programs cannot be made to run on any image: {finished.output[-_SHOWN_CHARS:]}")
        if finished.stderr:
            structlog.get_logger().warning("install.bound", install=self.request.key, files=finished.output.strip())

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

        settings.strike_out(tree)
        tree.chmod(0o755)
        for folder, folders, files in os.walk(tree):
            for path in (Path(folder, name) for name in (*folders, *files)):
                mode = path.lstat().st_mode
                if not stat.S_ISLNK(mode):
                    own = mode & 0o700 | (0o500 if stat.S_ISDIR(mode) else 0o400)
                    path.chmod(own | (own & 0o500) >> 3 | (own & 0o500) >> 6)
        return tree


class Installs:
    """Layers below `cache`, made in boxes of `provider`.

    `resolve` finds the addresses of names; None stands for the machine's own way.
    """

    def __init__(self, *, cache: Path, provider: Provider, resolve: Resolver | None = None) -> None:
        self._cache = UserCache(cache, "installs", kind="install", tree="files", read=lambda built: built.tree)
        self._provider = provider
        self._resolve = resolve

    @property
    def is_possible(self) -> bool:
        """True where devboxes can be shown files that they cannot change."""
        return {Capability.ISOLATED, Capability.ROOTED, Capability.EGRESS} <= self._provider.capabilities

    async def add(self, request: InstallRequest, prepared: Prepared, *, start_soon: StartSoon, tell: Tell) -> Prepared:
        """Return the environment with the install in it; made now, by a task of `start_soon`, if it never was.

        `tell` is given messages on the progress, for people. Raises InstallFailed.
        """
        make = partial(
            InstallBuild, resources=prepared.resources or Resources(), provider=self._provider, resolve=self._resolve
        )
        if prepared.image is None:
            brought = await run_sync(Brought.of, prepared)
            builds = [make(request=request), *([] if brought is None else [make(request=request, brought=brought)])]
            return await self._add(builds, prepared, request.prefix, start_soon, tell)
        prepared = await self._add([make(request=TOOLS, tools=())], prepared, TOOLCHAIN, start_soon, tell)
        return await self._add(
            [make(request=request, tools=prepared.binds[-1:])], prepared, request.prefix, start_soon, tell
        )

    async def _add(
        self, builds: Sequence[InstallBuild], prepared: Prepared, place: str, start_soon: StartSoon, tell: Tell
    ) -> Prepared:
        """Return the environment with the layer at `place`, made now if it never was. Raises InstallFailed."""
        layer: Path | None = None
        try:
            for build in builds:
                layer = layer or await run_sync(self._cache.find, await run_sync(build.name))
        except OSError as error:
            raise InstallFailed(f"{_FAILED}: {error}") from error

        if layer is None:
            await tell(f"What belongs at {place} is being installed, once for all devboxes that need it.")
            failures = []
            for build in builds:
                made = await self._make(build, start_soon)
                if isinstance(made, Path):
                    layer = made
                    break
                with_what = "" if build.brought is None else "With the programs that the environment brings: "
                failures.append(f"{with_what}{made}")
            else:
                raise InstallFailed(f"{_FAILED}: {chr(10).join(failures)}")
        await tell(f"What belongs at {place} is there.")
        return replace(prepared, binds=(*prepared.binds, Bind(source=layer, target=place)))

    async def _make(self, build: InstallBuild, start_soon: StartSoon) -> Path | str:
        """Return the layer, or why it was not made."""
        over, log = anyio.Event(), structlog.get_logger()
        made: Path | str = "the service stopped"

        async def make() -> None:
            nonlocal made
            try:
                made = await self._cache.get(await run_sync(build.name), build.carry_out)
            except (InstallFailed, OSError) as error:
                made = str(error)
            except Exception as error:  # one install's trouble is not the service's
                log.exception("install.crashed", install=build.request.key)
                made = repr(error)
            finally:
                over.set()

        start_soon(make)
        await over.wait()
        return made
