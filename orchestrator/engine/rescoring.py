"""A finished trial is scored again: the work that was kept is judged, and its agent costs nothing.

The new result has the agent's part of the one before (usage, times, log, flags) and the scorers' part of the new one.
"""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from orchestrator.agentkit.agent import Agent
from orchestrator.agentkit.kept_work import KeptWork
from orchestrator.core.errors import AgentCrashed, ScoringFault
from orchestrator.core.records import Flag, Outcome
from orchestrator.engine.artifacts.collect import ALL_CROSSED, CROSSED, CROSSED_BESIDE_PATCH, PATCH_FILE
from orchestrator.engine.context import AttemptState

#: Flags of a patch that was kept that make it other work than the agent's, each with the reason in words.
_SPOILT: Final = {
    Flag.NO_PATCH: "it has no patch",
    Flag.GATHER_INCOMPLETE: "its patch is not complete",
    Flag.SECRETS_MASKED: "a secret is masked in its patch",
}
_PIECE_BYTES: Final = 1 << 20
_LIVE: Final = (
    "its scorers ran beside what the agent had left running, which was not kept; "
    "--without-processes scores it again without that"
)
#: Flags that are about a scoring; the others are about an agent.
_OF_SCORINGS: Final = {Flag.SCORED_LIVE, Flag.SYSTEM_CHANGED, Flag.RESCORED_IN_PART, Flag.RESCORE_FAILED}
#: What of a result, or of a step, is its agent's.
_OF_AGENTS: Final = ("version", "started", "processes_left", "exit_status", "exit_reason", "usage", "network")
#: What of a result of several steps is that of the last one.
_OF_LAST_STEP: Final = ("files", "processes_left", "exit_status", "exit_reason")


def parts(result: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return the steps of a result by their names, or all of it as the only part, named ""."""
    return {step["name"]: step for step in result.get("steps") or ()} or {"": result}


def why_not(result: Mapping[str, Any], folder: Path, *, is_live_taken: bool = False) -> str:
    """Say why the work of a result cannot be scored again; "" if it can. Blocking; `folder` is the run folder.

    What was scored live can be, without the processes that were there, where that `is_live_taken`.
    """
    if result["failure"] is not None and result["failure"]["class"] != ScoringFault.__name__:
        return "its agent did not come to an end"
    for name, part in parts(result).items():
        why = _LIVE if part["scoring"] == "live" and not is_live_taken else _why_not(part, folder)
        if why:
            return f"step {name}: {why}" if name else why
    return ""


def _why_not(part: Mapping[str, Any], folder: Path) -> str:
    files = part["files"]
    left_out = _text(folder / files["left_out"]).splitlines() if "left_out" in files else []
    if Flag.DEVBOX_BROKEN_BY_AGENT in part["flags"]:
        return "its agent broke its devbox"
    if why := next((line for line in left_out if line.startswith(f"{CROSSED}: ")), ""):
        return f"what its scorers were given was not kept ({why}; `sweep docs results` says how it is)"
    if archive := crossed(part):
        try:
            for _ in _pieces(folder / archive):
                pass
        except FileNotFoundError:
            return f"its {CROSSED} is gone"
        except (OSError, EOFError, zlib.error):
            return f"its {CROSSED} is damaged"
    elif part["scoring"] == "separate" and "artifacts" in files:
        return "its artifacts were not kept as its scorers were given them: it was run by an earlier version of sweep"
    if ALL_CROSSED in files:
        return ""
    if why := next((why for flag, why in _SPOILT.items() if flag in part["flags"]), ""):
        return why
    if any(line.startswith(f"{PATCH_FILE}:") for line in left_out):
        return "its patch is not whole"
    return "" if "patch" not in files or (folder / files["patch"]).is_file() else "its patch is gone"


def crossed(part: Mapping[str, Any]) -> str | None:
    """Return the path of the archive of what crossed to separate scorers, relative to the run folder, if there is."""
    files: Mapping[str, str] = part["files"]
    return files.get(ALL_CROSSED) or files.get(CROSSED_BESIDE_PATCH)


def _pieces(archive: Path) -> Iterator[bytes]:
    """Read an archive. Raises OSError, EOFError and zlib.error; compression has a checksum."""
    with gzip.open(archive) as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def work_of(kept: Mapping[str, Any], agent: Agent, folder: Path) -> KeptWork:
    """Return the work of a result, in the place of the agent that did it; `folder` is the run folder."""
    return KeptWork(
        name=agent.name,
        digest=agent.digest,
        version=agent.version,
        model=agent.model,
        patches={name: _patch(part["files"], folder) for name, part in parts(kept).items()},
        crossed={name: folder / archive for name, part in parts(kept).items() if (archive := crossed(part))},
    )


def _patch(files: Mapping[str, str], folder: Path) -> Path | None:
    return folder / files["patch"] if "patch" in files and ALL_CROSSED not in files else None


def kept_part(state: AttemptState) -> Mapping[str, Any]:
    """Return the step under way as it was kept, or all where there are none."""
    return parts(state.kept or {"files": {}})[state.step_name if state.whole.steps else ""]


def need_same_work(state: AttemptState, folder: Path) -> None:
    """Raise AgentCrashed if what was put back is not what was kept, by its patch and what crosses. Blocking."""
    kept, now = kept_part(state), {"files": state.files}
    before, after = crossed(kept), crossed(now)
    if (before or after) and not (before and after and _are_same(folder / before, folder / after)):
        raise AgentCrashed("what was put back is not what was kept: other artifacts are given to its scorers now")
    if ALL_CROSSED in kept["files"]:
        return
    patches = [place and place.read_bytes() for place in (_patch(each["files"], folder) for each in (kept, now))]
    if patches[0] != patches[1]:
        raise AgentCrashed("what was put back is not what was kept: its patch is another")


def _are_same(one: Path, other: Path) -> bool:
    """Compare what two archives have in them."""
    with suppress(OSError, EOFError, zlib.error):
        return all(a == b for a, b in zip_longest(_pieces(one), _pieces(other)))
    return False


def rescored(kept: Mapping[str, Any], new: Mapping[str, Any]) -> Mapping[str, Any]:
    """Compose the line of results.jsonl from the one before and the new one; the former if there is no new score.

    What the agent changed outside the working directory was not kept, which a flag says.
    """
    if new["outcome"] != Outcome.SCORED:
        return unscored(kept)
    known, result = parts(kept), dict(_rescored(kept, new))
    result["rescored"] = kept.get("rescored") or {"score": kept["score"], "finished": kept["finished"]}
    if steps := [_rescored(known[step["name"]], step) for step in new["steps"]]:
        flags = dict.fromkeys(flag for step in steps for flag in step["flags"])
        result |= {**{key: steps[-1][key] for key in _OF_LAST_STEP}, "flags": list(flags), "steps": steps}
    return result


def unscored(kept: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the line of results.jsonl from before, with a flag that it could not be scored again."""
    return {**kept, "flags": [*kept["flags"], *({Flag.RESCORE_FAILED} - set(kept["flags"]))]}


def _rescored(kept: Mapping[str, Any], new: Mapping[str, Any]) -> Mapping[str, Any]:
    """Compose a part: what is the agent's of the one before, and the rest of the new one."""
    flags = [flag for flag in kept["flags"] if flag not in _OF_SCORINGS]
    if Flag.SYSTEM_CHANGED in kept["flags"] and ALL_CROSSED in kept["files"]:  # what crossed may be the change's work
        flags.append(Flag.SYSTEM_CHANGED)
    is_partly = kept["scoring"] == "live" or Flag.RESCORED_IN_PART in kept["flags"]
    is_partly |= "changes" in kept["files"] and ALL_CROSSED not in kept["files"]
    partly = [Flag.RESCORED_IN_PART] if is_partly else []
    scorers = {name: path for name, path in new["files"].items() if name.startswith("scorer_") or name == "verifier"}
    return {
        **new,
        **{key: kept[key] for key in _OF_AGENTS if key in kept},
        "flags": list(dict.fromkeys([*flags, *(flag for flag in new["flags"] if flag in _OF_SCORINGS), *partly])),
        "stages": {**kept["stages"], "score": new["stages"]["score"]},
        "files": {**kept["files"], **scorers},
    }
