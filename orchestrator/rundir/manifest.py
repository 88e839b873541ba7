"""The manifest of a sweep: what the sweep is, so that another process can resume it.

Two results compare only if benchmark, scenario contents, agents, models and scoring are the same: resuming a sweep that
differs in one of them is refused, naming it. How fast and how much is run may differ from day to day.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import orjson
from msgspec import Struct

from orchestrator import __version__
from orchestrator.core.config import ArmConfig, SweepConfig
from orchestrator.core.errors import JournalError, SweepError, UsageError
from orchestrator.core.plan import Plan
from orchestrator.core.protocol import LockKind
from orchestrator.core.records import ScenarioSummary
from orchestrator.rundir.files import MANIFEST, write_atomically

SCHEMA: Final = 1
#: The endpoint of a sweep on the embedded service.
EMBEDDED: Final = "embedded"
#: The keys that every manifest has.
_REQUIRED: Final = frozenset({"sweep", "identity", "config", "scenarios"})
_FIX: Final = "Put it back from a copy, or start anew with another --name."
#: Characters of a value that is shown beside the name of what changed; digests are longer.
_MAX_SHOWN: Final = 50
_MOST_TRIALS: Final = 10_000_000


class AgentDigest(Protocol):
    """The part of an agent that the identity of a sweep has."""

    @property
    def digest(self) -> str: ...


class IdentifiedArm(Protocol):
    """The part of an arm that the identity of a sweep has."""

    @property
    def config(self) -> ArmConfig: ...

    @property
    def agent(self) -> AgentDigest: ...


class Manifest(Struct, frozen=True, kw_only=True):
    """The keys of manifest.json. Those with a default may be missing in an older sweep's.

    `sweep` is the sweep's id, `created` ISO 8601, `identity` as `identity_of` makes it, `config` the settings of the
    last time as `resolve` reads them, `started_in` the folder that relative paths in them start from. `scenarios` has
    every scenario there ever was, by id; `selected` those of the last time, and `trials` the number of their trials.
    `skipped_unsupported` are the reasons why scenarios were left out, by name. `origin` is what a benchmark that was
    fetched was made from.
    """

    schema: int = 0
    sweep: str
    name: str = ""
    created: str = ""
    version: str = ""
    python: str = ""
    git_commit: str | None = None
    endpoint: str | None = None
    identity: dict[str, Any]
    trials: int = 0
    config: dict[str, Any]
    started_in: str = "."
    scenarios: dict[str, ScenarioSummary]
    selected: list[str] | None = None
    skipped_unsupported: dict[str, str] = {}
    origin: dict[str, Any] | None = None

    @property
    def kind(self) -> dict[str, Any]:
        """The identity, with the values that were the only ones before it had these keys."""
        return {"network": "agent", "scoring": "declared", **self.identity}

    @property
    def place(self) -> str:
        """The place of its devboxes, as `place_of` names it."""
        endpoint = None if self.endpoint == EMBEDDED else self.endpoint
        return place_of(endpoint, self.config.get("isolation", "local"))

    @property
    def plan(self) -> Plan:
        """The trials that the sweep was last asked for. Raises JournalError for values that no plan has."""
        selected = self.scenarios if self.selected is None else self.selected
        try:
            plan = Plan(
                benchmark=str(self.identity["benchmark"]),
                scenarios=tuple(self.scenarios[each] for each in selected),
                arms=tuple(str(arm["name"]) for arm in self.config["arms"]),
                trials=int(self.config["trials"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise JournalError(f"{MANIFEST} of {self.name} is damaged: {error!r}. {_FIX}") from None
        if not 0 <= len(plan) <= _MOST_TRIALS:
            raise JournalError(f"{MANIFEST} of {self.name} is damaged: it has {len(plan):,} trials. {_FIX}")
        return plan


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run folder. Raises UsageError if there is none, JournalError if it cannot be read."""
    path = folder / MANIFEST
    try:
        written = orjson.loads(path.read_bytes())
        if not isinstance(written, dict) or not written.keys() >= _REQUIRED:
            keys = ", ".join(sorted(_REQUIRED))
            raise JournalError(f"{path} is damaged: a JSON object with {keys} was expected. {_FIX}")
        scenarios = {id_: {**entry, "id": id_} for id_, entry in written["scenarios"].items()}
        return msgspec.convert({**written, "scenarios": scenarios}, Manifest)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder} is not a sweep: it has no {MANIFEST}.") from None
    except (orjson.JSONDecodeError, msgspec.ValidationError, TypeError, AttributeError) as error:
        raise JournalError(f"{path} is damaged: {error}. {_FIX}") from None
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror}.") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a run folder; keys of the file that a later version added stay. Raises OSError."""
    path = folder / MANIFEST
    kept = orjson.loads(path.read_bytes()) if path.exists() else {}
    written = msgspec.to_builtins(manifest)
    for entry in written["scenarios"].values():
        del entry["id"]
    write_atomically(path, orjson.dumps(kept | written, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def keep_config(folder: Path, config: SweepConfig) -> None:
    """Make settings that changed while the sweep ran those that a resume takes up. Raises OSError."""
    write_manifest(folder, msgspec.structs.replace(read_manifest(folder), config=config.model_dump(mode="json")))


def lock_of(folder: Path) -> LockKind:
    """The kind of lock that the sweep in a folder uses, as far as its manifest says."""
    with suppress(SweepError):
        return "none" if read_manifest(folder).config.get("lock") == "none" else "file"
    return "file"


def identity_of(config: SweepConfig, plan: Plan, arms: Mapping[str, IdentifiedArm]) -> dict[str, Any]:
    """The properties that results must share to be compared, as JSON gives them back: settings may have dates."""
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


def place_of(endpoint: str | None, isolation: str) -> str:
    """A name for people of the place of a sweep's devboxes; `endpoint` is None for the embedded service."""
    return endpoint.rstrip("/") if endpoint else f"the embedded service (--isolation {isolation})"


def check_same(
    path: Path,
    manifest: Manifest,
    identity: Mapping[str, Any],
    place: str,
    plan: Plan,
    may_change: Collection[str] = (),
) -> None:
    """Raise UsageError naming every way in which the sweep in the folder is of another kind.

    The content of the scenarios `may_change`, by id, may be another than it was.
    """
    if manifest.schema > SCHEMA:
        raise UsageError(f"{path} was written by sweep {manifest.version}; this is {__version__}. Upgrade it.")
    differing = list(_differences(manifest.kind, identity))
    differing += _differences(manifest.place, place, "endpoint")
    tried = {id_: summary.digest for id_, summary in manifest.scenarios.items() if not summary.unsupported}
    changed = [
        each.name
        for each in plan.scenarios
        if each.id not in may_change and each.digest != tried.get(each.id, each.digest)
    ]
    if changed:
        names = ", ".join(changed[:5]) + (" and others" if len(changed) > 5 else "")
        differing.append(f"the content of {names} has changed")
    if differing:
        raise UsageError(
            f"{path} has results of another kind: {'; '.join(differing)}. "
            "Give another --name to start a sweep of its own."
        )


def _differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """The keys whose values differ, with both values if they are short."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
    elif old != new:
        values = [orjson.dumps(value).decode() for value in (old, new)]
        is_short = max(map(len, values)) <= _MAX_SHOWN
        yield f"{at} was {values[0]} and is now {values[1]}" if is_short else f"{at} has changed"
