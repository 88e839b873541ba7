"""`sweep check`: reads a benchmark's definitions, then proves it.

A benchmark is sound if its definitions hold, its reference solutions score 1.0, and doing nothing scores less.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import anyio

from orchestrator.commands import BUNDLED, run_sweep
from orchestrator.commands.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from orchestrator.commands.fetched import fetch_shown
from orchestrator.core.config import EndpointConfig, resolve
from orchestrator.core.errors import UsageError
from orchestrator.core.printable import printable, printable_lines, shortened
from orchestrator.core.protocol import Described, Isolation
from orchestrator.rundir.manifest import read_manifest
from orchestrator.rundir.results_file import read_results
from orchestrator.service.definitions.catalog import Checked, CheckedScenario, checked
from orchestrator.service.diagnostics import Problem, Requirement
from orchestrator.service.sandbox.own_ids import Lent
from orchestrator.service.sandbox.user_namespace import IdMap
from orchestrator.view.console import print_record, say
from orchestrator.view.formats import LINES, Format

#: Characters of a quoted line.
LONGEST: Final = 200
#: Equal findings that are shown one by one, and the names that are shown of more.
_HANDFUL: Final = 5
_NAMED: Final = 3
#: The beginning of the finding that names all scenarios that have it.
_NEEDS_USERS: Final = "needs other users than root"
#: What a Dockerfile says where other users than root have to exist.
_USERS: Final = re.compile(
    r"^\s*USER\s+(?!root\b|0\b)|^(?!\s*(?:COPY|ADD|#))[^\n]*(?<![\w./-])"
    r"(?:useradd|adduser|groupadd|addgroup|chown|su|sudo|runuser|gosu|initdb|postgresql(?:-\d+)?)\s",
    re.IGNORECASE | re.MULTILINE,
)


class Fitness(Described):
    """Whether a scenario runs on this machine, and what it wants otherwise."""

    HERE = "here", "runs here"
    SUBUIDS = "subuids", "runs here as it should only with lent user ids"
    ENGINE = "engine", "needs a container engine"
    GPU = "gpu", "needs a GPU"
    CANNOT = "cannot", "cannot run"


_FITNESS: Final = {
    Requirement.USERS: Fitness.SUBUIDS,
    Requirement.ENGINE: Fitness.ENGINE,
    Requirement.GPU: Fitness.GPU,
}
_RUNNING: Final = frozenset({Fitness.HERE, Fitness.SUBUIDS})


async def check(
    benchmark: str, registries: Sequence[str], place: EndpointConfig, *, is_static: bool, runs: Path, output: Format
) -> int:
    """Check a benchmark and report; returns the exit code. Raises UsageError if there is no such benchmark."""
    folder = _folder(await fetch_shown(benchmark, registries, output))
    found = await anyio.to_thread.run_sync(checked, folder)
    found = _with_needs(found, place.isolation)
    reasons = Counter(map(_fitness, found.scenarios))
    can_run = sum(number for (fitness, _), number in reasons.items() if fitness in _RUNNING)
    has_errors = can_run < len(found.scenarios) or any(each.severity == "error" for each in found.problems)
    _tell(found, output)
    if len(found.scenarios) > 1 and not output.is_for_programs:
        say(f"{can_run:,} of {len(found.scenarios):,} can run here")
        for (fitness, reason), number in reasons.most_common():
            if reason:
                say(f"{number:,}: {fitness.meaning}: {reason}")
    if not is_static and not has_errors:
        complaints = await _prove(folder, place, runs, output)
        for complaint in complaints:
            if output.is_for_programs:
                print_record({"severity": "error", "message": complaint}, output)
                continue
            for line in printable_lines(f"error: {complaint}"):
                say(line)
        has_errors = bool(complaints)
    if output.is_for_programs:
        of_class = {each: sum(n for (fitness, _), n in reasons.items() if fitness is each) for each in Fitness}
        why = [{"class": each, "reason": why, "scenarios": n} for (each, why), n in reasons.most_common() if why]
        facts = {"scenarios": len(found.scenarios), "can_run": can_run, "classes": of_class, "reasons": why}
        print_record({"benchmark": folder.name, "sound": not has_errors, **facts}, output)
    else:
        say(f"{folder.name}: {'not sound' if has_errors else 'sound'}")
    return EXIT_FAILED if has_errors else EXIT_OK


def _with_needs(found: Checked, isolation: Isolation) -> Checked:
    """Add what scenarios need that this machine, or the isolation, does not give their images."""
    lack = _lack_of_users()
    scenarios = []
    for each in found.scenarios:
        needs: tuple[Problem, ...] = ()
        if each.images and isolation is Isolation.NONE:
            needs = (Problem("error", each.images[0].file, "", "asks for an image: leave out --isolation none"),)
        elif lack:
            why = f"{_NEEDS_USERS}, and images have none here: {lack}"
            demanding = (image for image in each.images if each.users or _USERS.search(image.text))
            needs = tuple(Problem("warning", image.file, "", why, Requirement.USERS) for image in demanding)
        scenarios.append(replace(each, problems=(*each.problems, *needs)))
    return replace(found, scenarios=tuple(scenarios))


def _lack_of_users() -> str:
    """Say why devboxes of images have one user here; "" if they have all."""
    if os.geteuid() == 0:
        return "" if IdMap.own().is_whole else "this container has too few ids"
    lent = Lent.find()
    return lent if isinstance(lent, str) else ""


def _fitness(scenario: CheckedScenario) -> tuple[Fitness, str]:
    """The class of a scenario, and the finding that puts it there without names and numbers; "" where it runs.

    Of several findings one that no other machine would be spared decides.
    """
    errors = [each for each in scenario.problems if each.severity == "error"]
    needs = [each for each in scenario.problems if each.need is not None]
    decisive = next((each for each in errors if each.need is None), None) or next(iter(errors or needs), None)
    if decisive is None:
        return Fitness.HERE, ""
    reason = re.sub(r"\S*[\d/.]\S*\b", "…", decisive.message.partition(";")[0])
    return (Fitness.CANNOT if decisive.need is None else _FITNESS[decisive.need]), reason


def _tell(found: Checked, output: Format) -> None:
    """Print the findings, those that many scenarios have together."""
    alike: dict[Problem, list[str]] = {}
    for scenario in found.scenarios:
        for problem in scenario.problems:
            alike.setdefault(problem, []).append(scenario.name)
    if output.is_for_programs:
        for problem in found.problems:
            print_record({"scenario": None, **problem._asdict()}, output)
        for scenario in found.scenarios:
            for problem in scenario.problems:
                print_record({"scenario": scenario.name, **problem._asdict()}, output)
        return
    for problem in found.problems:
        say(f"{problem.severity}: {problem}")
    for scenario in found.scenarios:
        for problem in scenario.problems:
            names = alike[problem]
            if len(names) <= _HANDFUL:
                where = problem.file if scenario.name == "." else os.path.join(scenario.name, problem.file)  # noqa: PTH118
                say(f"{problem.severity}: {problem._replace(file=where)}")
            elif names[0] == scenario.name:
                shown = names if problem.message.startswith(_NEEDS_USERS) else names[:_NAMED]
                more = f" and {len(names) - len(shown):,} more" if len(shown) < len(names) else ""
                say(f"{problem.severity}: {', '.join(shown)}{more}: {problem}")


def _folder(benchmark: str) -> Path:
    """The folder of a path, or of a bundled benchmark's name."""
    for folder in (Path(benchmark).expanduser(), BUNDLED / benchmark):
        if folder.is_dir():
            return folder.resolve()
    bundled = sorted(folder.name for folder in BUNDLED.iterdir() if folder.is_dir())
    near = get_close_matches(benchmark, bundled, 1)
    raise UsageError(
        f"{benchmark}: there is no such folder, and no bundled benchmark of that name; "
        + (f"did you mean {near[0]}?" if near else f"bundled: {', '.join(bundled)}.")
    )


async def _prove(folder: Path, place: EndpointConfig, runs: Path, output: Format) -> list[str]:
    """Run the reference solution and the empty one; returns the complaints."""
    config = resolve(
        {
            "benchmark": str(folder),
            "arms": [{"agent": "oracle"}, {"agent": "nop"}],
            "isolation": place.isolation,
            "lock": place.lock,
            "attempts": 1,
            "name": f"check-{time.strftime('%Y%m%d-%H%M%S')}",
        }
    )
    ended = await run_sweep.run(config, runs=runs, output=output if output.is_for_programs else LINES)
    if ended == EXIT_INTERRUPTED:
        return ["the check was interrupted before it proved anything"]
    ran = runs / str(config.name)
    results = await anyio.to_thread.run_sync(read_results, ran)
    planned = len((await anyio.to_thread.run_sync(read_manifest, ran)).plan)
    missing = [] if len(results) == planned else [f"{planned - len(results)} of {planned} trials have no result"]
    return [*missing, *(complaint for result in results for complaint in _judge(result, ran))]


def _judge(result: Mapping[str, Any], ran: Path) -> Iterator[str]:
    """Complain about one trial of `oracle` or `nop`; `ran` is its run folder.

    The last lines of a solution that failed, and of scorers that gave it less than 1.0, are quoted.
    """
    name, arm, score = printable(result["scenario_name"]), result["arm"], result["score"]
    if result["outcome"] != "scored":
        yield f"{name}: {arm} got no score: {result['failure']['message']}"
    elif arm == "oracle" and score != 1.0:
        files, status = result["files"], result["exit_status"]
        parts = [f"{name}: the reference solution scores {score:g}, not 1.0"]
        if status != 0:
            how = "ran out of time" if status is None else f"ended with exit status {status}"
            parts.append(f"solve.sh {how}{_last_line(ran, files.get('agent_log'))}")
        for scorer in result["scorers"]:
            said = _last_line(ran, files.get(f"scorer_{scorer['name']}"))
            if said and scorer["score"] != 1.0:
                parts.append(f"scorer {scorer['name']}{said}")
        yield "; ".join(parts)
    elif arm == "nop" and score >= 1.0:
        yield f"{name}: doing nothing scores {score:g}: the scorers cannot tell a solution from nothing"


def _last_line(ran: Path, file: str | None) -> str:
    """The last line of a file, after a colon; empty if there is none."""
    if file is None:
        return ""
    try:
        lines = (ran / file).read_text("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return ""
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f": {shortened(last, LONGEST)}" if last else ""
