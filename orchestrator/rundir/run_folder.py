"""The choice of a sweep's folder: the one to resume, or a new one."""

import platform
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import randbits
from subprocess import DEVNULL, SubprocessError, check_output
from typing import Any, Final

from msgspec import structs

from orchestrator import __version__
from orchestrator.core.config import SweepConfig
from orchestrator.core.errors import JournalError, UsageError
from orchestrator.core.plan import Plan
from orchestrator.core.printable import counted
from orchestrator.rundir.files import MANIFEST, locked, write_atomically
from orchestrator.rundir.manifest import (
    EMBEDDED,
    SCHEMA,
    IdentifiedArm,
    Manifest,
    check_same,
    identity_of,
    place_of,
    read_manifest,
    write_manifest,
)
from orchestrator.rundir.sweep_index import as_typed, is_finished, sweeps

SETTINGS: Final = "sweep.toml"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
#: Characters of a generated name; file systems allow 255.
_MAX_NAME: Final = 150
#: The settings that make a plan of the same kind larger or smaller.
_SIZES: Final = ("limit", "trials", "include", "exclude")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """The folder of a sweep, its id, and whether it was there before; `why` is that of `FoundFolder`."""

    path: Path
    sweep: str
    is_resumed: bool
    why: str = ""

    def keep_settings(self, file: Path) -> None:
        """Keep a copy of the settings file, as given."""
        write_atomically(self.path / SETTINGS, file.read_bytes())


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
) -> RunFolder:
    """Choose the folder that `find_folder` finds, else make a new one, and write its manifest.

    Raises UsageError for a bad name, for a folder whose sweep is of another kind, and for one that is in use;
    JournalError when the disk refuses.
    """
    found = find_folder(runs, config, plan, arms, endpoint=endpoint, is_again=is_again)
    path = found.path or (runs / config.name if config.name else _new_path(runs, plan))
    make_folder(path)
    try:
        with locked(path, config.lock):  # two processes must not both write a manifest
            folder = _write(path, config, plan, identity_of(config, plan, arms), endpoint)
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
        check_same(path, read_manifest(path), identity, place, plan)
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


def refuse_elsewhere(path: Path, endpoint: str | None, isolation: str) -> None:
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


def _write(path: Path, config: SweepConfig, plan: Plan, identity: dict[str, Any], endpoint: str | None) -> RunFolder:
    is_resumed = (path / MANIFEST).exists()
    if is_resumed:
        manifest = read_manifest(path)
        check_same(path, manifest, identity, place_of(endpoint, config.isolation), plan)
    else:
        manifest = Manifest(
            schema=SCHEMA,
            sweep=str(_uuid7()),
            name=path.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
            python=platform.python_version(),
            git_commit=_git_commit(),
            endpoint=endpoint or EMBEDDED,
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
    )
    write_manifest(path, manifest)
    return RunFolder(path=path, sweep=manifest.sweep, is_resumed=is_resumed)


def _new_path(runs: Path, plan: Plan) -> Path:
    """`<benchmark>-<arm>-<date>-<time>`, with a number after it if that is taken."""
    arm = plan.arms[0] if len(plan.arms) == 1 else f"{len(plan.arms)}-arms"
    kind = re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{plan.benchmark}-{arm}").strip("._+-")[:_MAX_NAME]
    stem = f"{kind or 'sweep'}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 1000)))
    return next(runs / name for name in names if not (runs / name).exists())


def _git_commit() -> str | None:
    """The commit of the current folder, if git has one."""
    try:
        return check_output(["git", "rev-parse", "HEAD"], stderr=DEVNULL, text=True, timeout=5).strip()
    except (OSError, SubprocessError):
        return None


def _uuid7() -> uuid.UUID:
    """A UUID whose order is that of time (RFC 9562, section 5.7)."""
    value = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80 | randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)
