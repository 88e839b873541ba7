"""The sweeps of a runs folder: their index, the process that runs one, and the folder of the sweep to run.

That is the named folder, else the folder of an unfinished sweep of the same kind, else a new one.
"""

import os
import platform
import re
import shlex
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from secrets import randbits
from subprocess import DEVNULL, SubprocessError, check_output
from typing import Any, Final

from msgspec import structs

from orchestrator import __version__
from orchestrator.common import locks
from orchestrator.core.config import RUNS, SweepConfig
from orchestrator.core.errors import JournalError, SweepError, UsageError
from orchestrator.core.events import SweepEnded, TrialFinished, TrialReopened
from orchestrator.core.plan import Plan
from orchestrator.core.printable import counted, printable
from orchestrator.core.protocol import Isolation
from orchestrator.core.records import TrialKey
from orchestrator.rundir import manifest as manifests
from orchestrator.rundir.files import JOURNAL, MANIFEST, locked, write_atomically
from orchestrator.rundir.manifest import IdentifiedArm, Manifest, check_same, identity_of, place_of, read_manifest

#: The file with a copy of the settings.
SETTINGS: Final = "sweep.toml"
_HOLDER: Final = re.compile(r"process (\d+) on (.*)")
#: The beginnings of the journal lines that tell how many trials are done.
_FINISHED, _REOPENED, _ENDED = (
    f'{{"event":"{cls.__struct_config__.tag}"'.encode() for cls in (TrialFinished, TrialReopened, SweepEnded)
)
#: In the line that ends a sweep of which no selected trial is left.
_NOTHING_LEFT: Final = b'"reason":"finished"'
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
#: Characters of a generated name; file systems allow 255.
_MAX_NAME: Final = 150
#: The settings that make a plan of the same kind larger or smaller.
_SIZES: Final = ("limit", "trials", "include", "exclude")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that runs a sweep. `pid` is None unless it is certainly a process of this machine."""

    name: str
    pid: int | None


def holder(folder: Path) -> Holder | None:
    """The process that holds the folder's lock; None if there is none."""
    found = locks.holder(folder)
    if found is None:
        return None
    name, note = found
    if note is not None:
        return Holder(name=name, pid=note.pid if note.is_here else None)
    match = _HOLDER.fullmatch(name)
    is_here = match is not None and match[2] == os.uname().nodename and _has_open(match[1], folder / locks.LOCK)
    return Holder(name=name, pid=int(match[1]) if match and is_here else None)


def _has_open(pid: str, file: Path) -> bool:
    """True if a process has this file open: its number alone may be that of another process now."""
    try:
        wanted = file.stat()
        for each in Path("/proc", pid, "fd").iterdir():
            with suppress(FileNotFoundError):
                if os.path.samestat(each.stat(), wanted):
                    return True
    except OSError:
        return False
    return False


def run_folders(runs: Path) -> Sequence[Path]:
    """The run folders, newest first: a sweep that is resumed is new."""
    changed = {}
    for path in runs.glob(f"*/{MANIFEST}"):
        with suppress(OSError):
            changed[path.parent] = path.stat().st_mtime_ns
    return sorted(changed, key=changed.__getitem__, reverse=True)


def sweeps(runs: Path) -> Iterator[tuple[Path, Manifest]]:
    """The run folders with their manifests, newest first; those that cannot be read are left out."""
    for folder in run_folders(runs):
        with suppress(SweepError, OSError):
            yield folder, read_manifest(folder)


def is_finished(folder: Path, manifest: Manifest) -> bool:
    """True if every trial that was last asked for has a result, and its process had nothing left to do."""
    finished, last = 0, b""
    with suppress(FileNotFoundError), (folder / JOURNAL).open("rb") as journal:
        for line in journal:
            finished += line.startswith(_FINISHED) - line.startswith(_REOPENED)
            last = line
    has_ended = last.startswith(_ENDED) and _NOTHING_LEFT in last and last.endswith(b"\n")
    return finished >= manifest.trials and has_ended


def find(runs: Path, name: str) -> Path:
    """Find the run folder with this name below `runs`, or at this path. Raises UsageError with close names."""
    folder = _found(runs, name)
    if folder is not None:
        return folder if folder.name not in {"", ".."} else folder.resolve()
    known = [printable(folder.name) for folder, _ in sweeps(runs)]
    near = get_close_matches(name, known, 3)
    hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(known[:10]) or 'none'}."
    raise UsageError(f"There is no sweep {name!r} in {runs}. {hint}")


def is_sweep(runs: Path, name: str) -> bool:
    """True if `find` finds a run folder of that name."""
    return _found(runs, name) is not None


def _found(runs: Path, name: str) -> Path | None:
    places = (runs / name, Path(name).expanduser())
    return next((folder for folder in places if (folder / MANIFEST).is_file()), None)


def as_typed(folder: Path) -> str:
    """The argument for a command that finds this folder: its name if that is enough, else its path."""
    runs = Path(os.environ.get("SWEEP_RUNS") or RUNS)
    is_there = folder.parent == runs or folder.resolve().parent == runs.resolve()
    return shlex.quote(folder.name if is_there else str(folder))


def trial_as_typed(folder: Path, key: TrialKey, plan: Plan) -> str:
    """The arguments for a command that finds a trial: its sweep and scenario, and what tells it from others of it."""
    name = plan.by_id[key.scenario].name
    is_enough = name.isprintable() and not name.startswith("-") and name not in plan.shared_names
    words = [as_typed(folder), shlex.quote(name if is_enough else key.scenario)]
    if len(plan.arms) > 1:
        words += ["--arm", shlex.quote(key.arm)]
    if plan.trials > 1:
        words += ["--trial", str(key.number)]
    return " ".join(words)


def find_unfinished(runs: Path) -> Path:
    """Find the newest unfinished sweep. Raises UsageError if there is none."""
    found = next((folder for folder, manifest in sweeps(runs) if not is_finished(folder, manifest)), None)
    if found is None:
        raise UsageError(f"There is no unfinished sweep in {runs}: name one, or say with --runs where it is.")
    return found


def find_newest(runs: Path) -> Path:
    """Find the sweep that was started or resumed last. Raises UsageError if there is none."""
    for folder in run_folders(runs):
        return folder
    raise UsageError(f"There is no sweep in {runs}: say with --runs where it is.")


def find_running(runs: Path) -> Path:
    """Find the sweep that is running. Raises UsageError if there is none, or more than one."""
    found = [folder for folder, _ in sweeps(runs) if holder(folder)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"Several sweeps are running; name one: {', '.join(folder.name for folder in found)}.")
    raise UsageError(f"No sweep of {runs} is running: name one, or say with --runs where it is.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """The folder of a sweep, and its id. `is_resumed` is true if it was there before; `why` is as in `FoundFolder`."""

    path: Path
    sweep: str
    is_resumed: bool
    why: str = ""

    def keep_settings(self, file: Path, mask: Callable[[bytes], bytes]) -> None:
        """Keep a copy of the settings file, as given but for what `mask` masks."""
        write_atomically(self.path / SETTINGS, mask(file.read_bytes()))


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFolder:
    """The folder of the sweep to resume; None for a new one.

    `why` says for people why it is new, if there is an unfinished sweep of its kind.
    """

    path: Path | None
    why: str = ""


def choose_folder(
    runs: Path,
    config: SweepConfig,
    plan: Plan,
    arms: Mapping[str, IdentifiedArm],
    *,
    endpoint: str | None,
    is_again: bool = False,
    may_change: Collection[str] = (),
) -> RunFolder:
    """Choose the folder that `find_folder` finds, else make a new one, and write its manifest.

    The content of the scenarios `may_change`, by id, may be another than it was: they are scored again. Raises
    UsageError for a bad name, for a folder whose sweep is of another kind, and for one that is in use; JournalError
    when the disk refuses.
    """
    found = find_folder(runs, config, plan, arms, endpoint=endpoint, is_again=is_again, may_change=may_change)
    path = found.path or (runs / config.name if config.name else None)
    if path is None:  # `<benchmark>-<arm>-<date>-<time>`, with a number after it if that is taken
        arm = plan.arms[0] if len(plan.arms) == 1 else f"{len(plan.arms)}-arms"
        kind = re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{plan.benchmark}-{arm}").strip("._+-")[:_MAX_NAME]
        stem = f"{kind or 'sweep'}-{time.strftime('%Y%m%d-%H%M%S')}"
        names = (stem, *(f"{stem}-{number}" for number in range(2, 1000)))
        path = next(runs / name for name in names if not (runs / name).exists())
    make_folder(path)
    try:
        with locked(path, config.lock):  # two processes must not both write a manifest
            folder = _write(path, config, plan, identity_of(config, plan, arms), endpoint, may_change)
            return replace(folder, why=found.why)
    except OSError as error:
        raise JournalError(f"{path} cannot be written: {error}") from error


def make_folder(path: Path) -> None:
    """Make a run folder if it is not there yet, for its owner only: the output of agents may be confidential.

    Raises UsageError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path}: the run folder cannot be made: {error.strerror}. Give another --runs or --name."
        ) from None


def find_folder(
    runs: Path,
    config: SweepConfig,
    plan: Plan,
    arms: Mapping[str, IdentifiedArm],
    *,
    endpoint: str | None,
    is_again: bool = False,
    may_change: Collection[str] = (),
) -> FoundFolder:
    """Find the named folder, else an unfinished sweep of the same kind in the same place. Changes nothing.

    Of unfinished ones only a sweep whose trials are all in this plan is found, so that none is made smaller by
    accident: the largest, and of several the newest. `is_again` finds finished ones too: some of their trials are to be
    run again. Raises UsageError for a bad name, and for a folder whose sweep is of another kind.
    """
    identity, place = identity_of(config, plan, arms), place_of(endpoint, config.isolation)
    if config.name is not None:
        if not _NAME.fullmatch(config.name):
            raise UsageError(f"--name {config.name!r}: use letters, digits, dots, dashes, underscores and plus signs.")
        path = runs / config.name
        if not (path / MANIFEST).exists():
            return FoundFolder(path=None)
        check_same(path, read_manifest(path), identity, place, plan, may_change)
        return FoundFolder(path=path)

    same = [
        (path, manifest)
        for path, manifest in sweeps(runs)
        if manifest.kind == identity and manifest.place == place and (is_again or not is_finished(path, manifest))
    ]
    fitting = [(path, manifest) for path, manifest in same if all(key in plan for key in manifest.plan)]
    if not fitting:
        return FoundFolder(path=None, why=_why_new(*same[0], config, plan) if same else "")
    path, manifest = max(fitting, key=lambda each: len(each[1].plan))
    check_same(path, manifest, identity, place, plan)
    return FoundFolder(path=path)


def _why_new(path: Path, manifest: Manifest, config: SweepConfig, plan: Plan) -> str:
    def typed(value: Any) -> str:
        words = " ".join(value) if isinstance(value, list) else value
        return str(words) if words else "not given"

    before, now = manifest.config, config.model_dump(mode="json")
    differing = [
        f"--{size} was {typed(before.get(size))}, is {typed(now[size])}"
        for size in _SIZES
        if now[size] != before.get(size)
    ]
    reason = f" ({'; '.join(differing)})" if differing else ""
    lost = sum(key not in plan for key in manifest.plan)
    return (
        f"New sweep: {path.name} has {counted(lost, 'trial')} that this plan does not have{reason}. "
        f"To continue {path.name}: sweep resume {as_typed(path)}"
    )


def refuse_elsewhere(path: Path, endpoint: str | None, isolation: Isolation) -> None:
    """Raise UsageError if the sweep in this folder, if there is one, runs on another endpoint: its devboxes are there.

    `endpoint` is None for the embedded service.
    """
    if not (path / MANIFEST).exists():
        return
    there, here = read_manifest(path).place, place_of(endpoint, isolation)
    if there != here:
        raise UsageError(
            f"{path} runs on {there}, and this would go on with it on {here}. "
            "Go on with it there, or give another --name to start a sweep of its own."
        )


def _write(
    path: Path,
    config: SweepConfig,
    plan: Plan,
    identity: dict[str, Any],
    endpoint: str | None,
    may_change: Collection[str],
) -> RunFolder:
    is_resumed = (path / MANIFEST).exists()
    if is_resumed:
        manifest = read_manifest(path)
        check_same(path, manifest, identity, place_of(endpoint, config.isolation), plan, may_change)
    else:
        git_commit = None
        with suppress(OSError, SubprocessError):
            git_commit = check_output(["git", "rev-parse", "HEAD"], stderr=DEVNULL, text=True, timeout=5).strip()
        manifest = Manifest(
            schema=manifests.SCHEMA,
            sweep=str(_uuid7()),
            name=path.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
            python=platform.python_version(),
            git_commit=git_commit,
            endpoint=endpoint or manifests.EMBEDDED,
            identity=identity,
            config={},
            scenarios={},
        )
    manifest = structs.replace(
        manifest,
        trials=len(plan),
        config=config.model_dump(mode="json"),
        started_in=str(Path.cwd()),
        scenarios=manifest.scenarios | {scenario.id: scenario for scenario in plan.scenarios},
        selected=[scenario.id for scenario in plan.scenarios],
        skipped_unsupported={scenario.name: scenario.unsupported for scenario in plan.left_out},
        origin=None if plan.origin is None else dict(plan.origin),
    )
    manifests.write_manifest(path, manifest)
    return RunFolder(path=path, sweep=manifest.sweep, is_resumed=is_resumed)


def _uuid7() -> uuid.UUID:
    """A UUID whose order is that of time (RFC 9562, section 5.7)."""
    value = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80 | randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)
