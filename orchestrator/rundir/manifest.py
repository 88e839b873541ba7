"""Which folder a sweep lives in, and its manifest: what the sweep is, so that another process can go on with it.

Two results compare only if benchmark, scenario contents, agents, models and scoring are the same: going on with a
sweep that differs in one of them is refused, naming it. How fast and how much is run may differ from day to day.
"""

import platform
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import randbits
from subprocess import DEVNULL, SubprocessError, check_output
from typing import Any, Final, Protocol

import orjson

from orchestrator import __version__
from orchestrator.core.config import ArmConfig, SweepConfig
from orchestrator.core.errors import JournalError, UsageError
from orchestrator.core.plan import Plan
from orchestrator.core.printable import counted
from orchestrator.core.records import ScenarioSummary
from orchestrator.rundir.files import MANIFEST, locked, read_manifest, write_atomically
from orchestrator.rundir.sweep_index import as_typed, is_finished, planned, sweeps

SCHEMA: Final = 1
SETTINGS: Final = "sweep.toml"
EMBEDDED: Final = "embedded"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
#: Characters of a name that we make ourselves; file systems allow 255.
_LONGEST: Final = 150
#: What makes a plan of the same kind larger or smaller.
_SIZES: Final = ("limit", "trials", "include", "exclude")
#: Characters of a value that is shown beside the name of what changed; digests are longer.
_SHORT: Final = 50


class Agent(Protocol):
    """An agent, as far as it tells one kind of sweep from another."""

    @property
    def digest(self) -> str: ...


class Arm(Protocol):
    """An arm, as far as it tells one kind of sweep from another."""

    @property
    def config(self) -> ArmConfig: ...

    @property
    def agent(self) -> Agent: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """A sweep's folder: its id, and whether it was there before; `why` is that of `Found`."""

    path: Path
    sweep: str
    is_resumed: bool
    why: str = ""

    def keep_settings(self, file: Path) -> None:
        """Keep a copy of the settings file, as given."""
        write_atomically(self.path / SETTINGS, file.read_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The folder of the sweep to go on with; None for a new one.

    `why` says for people why it is new, where an unfinished sweep of its kind is there.
    """

    path: Path | None
    why: str = ""


def choose_folder(
    runs: Path,
    config: SweepConfig,
    plan: Plan,
    arms: Mapping[str, Arm],
    *,
    endpoint: str | None,
    is_again: bool = False,
) -> RunFolder:
    """The folder that `find_folder` finds, else a new one; its manifest is written.

    Raises UsageError for a bad name, for a folder whose sweep is of another kind, and for one that is in use;
    JournalError when the disk refuses.
    """
    found = find_folder(runs, config, plan, arms, endpoint=endpoint, is_again=is_again)
    path = found.path or (runs / config.name if config.name else _new_path(runs, plan))
    make_folder(path)
    try:
        with locked(
            path, config.lock
        ):  # two that start at once must not both write it, nor one change it under another
            folder = _write_manifest(path, config, plan, _identity(config, plan, arms), endpoint)
            return replace(folder, why=found.why)
    except OSError as error:
        raise JournalError(f"{path} cannot be written: {error}") from error


def make_folder(path: Path) -> None:
    """Make a run folder that is not there yet, for its owner only: what agents print may be nobody else's business.

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
    arms: Mapping[str, Arm],
    *,
    endpoint: str | None,
    is_again: bool = False,
) -> Found:
    """The named folder, else an unfinished sweep of the same kind in the same place.

    Of these only one whose trials are all in this plan, for none is made smaller by accident: the largest, and of
    several the newest. `is_again` finds finished ones too: something of them is to be run again. Changes nothing.
    Raises UsageError for a bad name, and for a folder whose sweep is of another kind.
    """
    identity, place = _identity(config, plan, arms), _place(endpoint, config.isolation)
    if config.name is not None and not _NAME.fullmatch(config.name):
        raise UsageError(f"--name {config.name!r}: use letters, digits, dots, dashes, underscores and plus signs.")
    if config.name is not None:
        path = runs / config.name
        found = Found(path=path if (path / MANIFEST).exists() else None)
    else:
        same = [
            (path, manifest)
            for path, manifest in sweeps(runs)
            if _identity_of(manifest) == identity
            and _place_of(manifest) == place
            and (is_again or not is_finished(path, manifest))
        ]
        fitting = {path: len(planned(manifest)) for path, manifest in same if not _lost(manifest, plan)}
        if same and not fitting:
            return Found(path=None, why=_why_new(*same[0], config, plan))
        found = Found(path=max(fitting, key=fitting.__getitem__, default=None))
    if found.path is not None:
        _check_same(found.path, read_manifest(found.path), identity, place, plan)
    return found


def _lost(manifest: Mapping[str, Any], plan: Plan) -> int:
    """How many of the trials that a sweep was last asked for are not in this plan."""
    return sum(key not in plan for key in planned(manifest))


def _why_new(path: Path, manifest: Mapping[str, Any], config: SweepConfig, plan: Plan) -> str:
    before, now = manifest["config"], config.model_dump(mode="json")
    differing = [
        f"--{size} was {_typed(before.get(size))}, is {_typed(now[size])}"
        for size in _SIZES
        if now[size] != before.get(size)
    ]
    reason = f" ({'; '.join(differing)})" if differing else ""
    lost = _lost(manifest, plan)
    return (
        f"New sweep: {path.name} has {counted(lost, 'trial')} that this plan does not have{reason}. "
        f"To continue {path.name}: sweep resume {as_typed(path)}"
    )


def _typed(value: Any) -> str:
    """A setting as it is typed."""
    words = " ".join(value) if isinstance(value, list) else value
    return str(words) if words else "not given"


def refuse_elsewhere(path: Path, endpoint: str | None, isolation: str) -> None:
    """Raise UsageError if the sweep in this folder, if there is one, runs on another endpoint: its devboxes are there.

    `endpoint` is None for the embedded service.
    """
    if not (path / MANIFEST).exists():
        return
    there, here = _place_of(read_manifest(path)), _place(endpoint, isolation)
    if there != here:
        raise UsageError(
            f"{path} runs on {there}, and this would go on with it on {here}. "
            "Go on with it there, or give another --name to start a sweep of its own."
        )


def _identity_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Sweeps did without a word on the network and on where scorers run once."""
    return {"network": "agent", "scoring": "declared", **manifest.get("identity", {})}


def _place_of(manifest: Mapping[str, Any]) -> str:
    endpoint = manifest.get("endpoint")
    isolation = manifest.get("config", {}).get("isolation", "local")
    return _place(None if endpoint == EMBEDDED else endpoint, isolation)


def _place(endpoint: str | None, isolation: str) -> str:
    return endpoint.rstrip("/") if endpoint else f"the embedded service (--isolation {isolation})"


def _write_manifest(
    path: Path, config: SweepConfig, plan: Plan, identity: Mapping[str, Any], endpoint: str | None
) -> RunFolder:
    is_resumed = (path / MANIFEST).exists()
    if is_resumed:
        manifest = read_manifest(path)
        _check_same(path, manifest, identity, _place(endpoint, config.isolation), plan)
    else:
        manifest = _manifest(path, identity, endpoint)
    manifest |= {
        "trials": len(plan),
        "config": config.model_dump(mode="json"),
        "started_in": str(Path.cwd()),  # where its relative paths mean something
        "scenarios": manifest.get("scenarios", {}) | dict(map(_entry, plan.scenarios)),
        "selected": [scenario.id for scenario in plan.scenarios],
        "skipped_unsupported": {scenario.name: scenario.unsupported for scenario in plan.left_out},
    }
    write_atomically(path / MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return RunFolder(path=path, sweep=manifest["sweep"], is_resumed=is_resumed)


def _entry(scenario: ScenarioSummary) -> tuple[str, dict[str, Any]]:
    """A scenario's id, and the rest of it."""
    entry = asdict(scenario)
    return entry.pop("id"), entry


def _identity(config: SweepConfig, plan: Plan, arms: Mapping[str, Arm]) -> dict[str, Any]:
    """What must be the same for results to belong together, as JSON gives it back: settings may have dates in them."""
    identity = {
        "benchmark": plan.benchmark,
        "on_agent_failure": config.on_agent_failure,
        "network": config.network,
        "scoring": config.scoring,
        "arms": {
            name: {
                "agent": arm.config.agent,
                "digest": arm.agent.digest,
                "model": arm.config.model,
                "settings": arm.config.settings,
            }
            for name, arm in arms.items()
        },
    }
    as_read: dict[str, Any] = orjson.loads(orjson.dumps(identity))
    return as_read


def _manifest(path: Path, identity: Mapping[str, Any], endpoint: str | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "sweep": str(_uuid7()),
        "name": path.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "python": platform.python_version(),
        "git_commit": _git_commit(),
        "endpoint": endpoint or EMBEDDED,
        "identity": identity,
    }


def _check_same(path: Path, manifest: Mapping[str, Any], identity: Mapping[str, Any], place: str, plan: Plan) -> None:
    """Raises UsageError naming every way in which the sweep in the folder is of another kind."""
    if manifest.get("schema", 0) > SCHEMA:
        raise UsageError(f"{path} was written by sweep {manifest.get('version')}; this is {__version__}. Upgrade it.")
    differing = list(_differences(_identity_of(manifest), identity))
    differing += _differences(_place_of(manifest), place, "endpoint")
    known = manifest.get("scenarios", {})
    tried = {identity: entry for identity, entry in known.items() if not entry.get("unsupported")}
    changed = [s.name for s in plan.scenarios if s.id in tried and tried[s.id]["digest"] != s.digest]
    if changed:
        names = ", ".join(changed[:5]) + (" and others" if len(changed) > 5 else "")
        differing.append(f"the content of {names} has changed")
    if differing:
        raise UsageError(
            f"{path} has results of another kind: {'; '.join(differing)}. "
            "Give another --name to start a sweep of its own."
        )


def _differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """The keys whose values differ, with both values where they are short."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
    elif old != new:
        values = [orjson.dumps(value).decode() for value in (old, new)]
        is_short = max(map(len, values)) <= _SHORT
        yield f"{at} was {values[0]} and is now {values[1]}" if is_short else f"{at} has changed"


def _new_path(runs: Path, plan: Plan) -> Path:
    """`<benchmark>-<arm>-<date>-<time>`, with a number behind it where that is taken."""
    arm = plan.arms[0] if len(plan.arms) == 1 else f"{len(plan.arms)}-arms"
    kind = re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{plan.benchmark}-{arm}").strip("._+-")[:_LONGEST]
    stem = f"{kind or 'sweep'}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 1000)))
    return next(runs / name for name in names if not (runs / name).exists())


def _git_commit() -> str | None:
    """The commit of the folder we were started in, if it is one of git's."""
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
