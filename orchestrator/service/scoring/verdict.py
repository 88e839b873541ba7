"""The meaning of a scorer's end: pure functions from exit status and output to a score, or to why there is none.

A score is only what a scorer said and meant. A script that prints `score=1.0` and then exits with a status other than 0
is in `error`, not at 1.0: the documents ask for a printed score and say nothing of the exit status, and a script that
broke after a first guess must not count as one that finished. A scorer that ran out of time, was killed, could not be
executed or printed no number from 0 to 1 is in `error` too, never at a silent 0.
"""

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import fsum
from typing import Final

from msgspec.structs import replace as replaced

from orchestrator.service.records import ContractResult, FunctionResult, FunctionState
from orchestrator.service.sandbox.folders import VERIFIER
from orchestrator.service.scoring.rewards import JSON_FILE, TEXT_FILE, BadReward, WrongReward, read_rewards, score_of

#: Decimals of a total: far finer than any weight, far coarser than the noise of adding floats.
DECIMALS: Final = 9
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_REWARDS_LINE: Final = re.compile(r"^rewards=(\{.*\})$", re.MULTILINE)
_SCORE_LINE: Final = re.compile(r"^[ \t]*score=[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The end of a scorer's program.

    The exit status is None if it was killed for using up its `limit`, in seconds. `stdout` is what it printed, or the
    end of that if it was long; `output` is both streams for people, cut in the middle if they were long. `files` are
    those that were to be read after its end, by path: their first bytes, None where there is no such file.
    """

    status: int | None
    limit: float
    stdout: str
    output: str
    files: Mapping[str, bytes | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A score from 0 to 1, or why there is none; the named numbers, where there are some, though none be the score.

    `broken` says what was done, where what is judged broke the box that judged it: that is no fault of the scorer. An
    error that `is_own` is, surely: it gave numbers, and they are no score.
    """

    score: float = 0.0
    error: str | None = None
    rewards: Mapping[str, float] = field(default_factory=dict)
    broken: str | None = None
    is_own: bool = False


def judge_printed(ended: Ended, *, last_line_only: bool = False) -> Verdict:
    """Judge by the score a script printed: its last `score=` line, else a bare number as its last line.

    With `last_line_only`, only the last line counts, in either spelling.
    """
    if broken := _broken(ended):
        return Verdict(error=broken)
    rewards: Mapping[str, float] = {}
    with suppress(BadReward):  # the named numbers that the script around tests/ printed
        if named := _REWARDS_LINE.findall(ended.stdout):
            rewards = read_rewards(named[-1].encode(), None)
    if ended.status:
        words = f"it ended with exit status {ended.status}; a score counts only with exit status 0"
        return Verdict(error=words, rewards=rewards)
    lines = [line.strip() for line in ended.stdout.splitlines() if line.strip()]
    if not lines:
        return Verdict(error="it printed no score: its standard output is empty")
    said = _SCORE_LINE.findall(ended.stdout)
    if last_line_only or not said:
        return _number(lines[-1].removeprefix("score=").strip(), f"the last line, {_short(lines[-1])}, is no score")
    return replace(_number(said[-1], f"score={_short(said[-1])} is no score"), rewards=rewards)


def judge_rewards(ended: Ended) -> Verdict:
    """Judge by the score that tests wrote into /logs/verifier; their status means nothing, but a signal's does.

    Code under test may have written that score, and ended the tests before they write another.
    """
    if ended.status is None or 128 < ended.status < 128 + signal.NSIG:
        return Verdict(error=_broken(ended))
    rewards: Mapping[str, float] = {}
    try:
        rewards = read_rewards(*(ended.files.get(f"{VERIFIER}/{name}") for name in (JSON_FILE, TEXT_FILE)))
        return Verdict(score=score_of(rewards), rewards=rewards)
    except BadReward as error:
        words = f"{error} (it ended with exit status {ended.status})"
        return Verdict(error=words, rewards=rewards, is_own=isinstance(error, WrongReward))


def judge_status(ended: Ended) -> Verdict:
    """Exit status 0 passes, another one fails; a command that could not run or was killed did neither."""
    if broken := _broken(ended):
        return Verdict(error=broken)
    return Verdict(score=1.0 if ended.status == 0 else 0.0)


def judge_matches(ended: Ended) -> Verdict:
    """A search passes when it printed a match.

    The program says 1 for no match. It says 0 without printing anything for a pattern that does not parse as a whole.
    """
    if broken := _broken(ended):
        return Verdict(error=broken)
    if ended.status == 0 and not ended.stdout.strip():
        return Verdict(error="the pattern is not valid in this language, and nothing matched it")
    if ended.status not in {0, 1}:
        return Verdict(error=f"the search failed with exit status {ended.status}: see the pattern and the language")
    return Verdict(score=1.0 if ended.status == 0 else 0.0)


def _broken(ended: Ended) -> str | None:
    """Return why a program that ended so cannot be judged; None if it ran and ended by itself."""
    status = ended.status
    if status is None:
        return f"it ran out of time after {ended.limit:.4g} s and was killed with all it had started"
    if status == 126:
        return "it could not be executed (exit status 126)"
    if status == 127:
        return "a program it needs was not found (exit status 127)"
    if 128 < status < 128 + signal.NSIG:
        name = next((each.name for each in signal.Signals if each == status - 128), f"signal {status - 128}")
        return f"it was killed by {name} (exit status {status})"
    return None


def _number(text: str, complaint: str) -> Verdict:
    score = float(text) if _NUMBER.fullmatch(text) else -1.0
    if 0.0 <= score <= 1.0:
        return Verdict(score=score + 0.0)  # adding 0 turns -0.0 into 0.0
    return Verdict(error=f"{complaint}: expected a number from 0.0 to 1.0")


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def result_of(name: str, verdict: Verdict, *, output: str, seconds: float, python: str | None = None) -> FunctionResult:
    """Make one function's result; the reason of an error is the last line of its output."""
    if verdict.error:
        gap = "" if not output or output.endswith("\n") else "\n"
        output = f"{output}{gap}scorer {name}: {verdict.error}\n"
    return FunctionResult(
        scoring_function_name=name,
        score=verdict.score,
        output=output,
        state=FunctionState.ERROR if verdict.error else FunctionState.COMPLETE,
        seconds=round(seconds, 3),
        python=python,
        rewards=verdict.rewards or None,
        broken=verdict.broken or None,
        is_own=verdict.is_own,
    )


def weigh(weights: Sequence[float], results: Iterable[FunctionResult]) -> ContractResult:
    """Make the contract's result: the weighed mean of the scores, a function in error counting 0.

    Weights that sum to 1 within the tolerance count as if they did exactly, so that all passed is 1.0.
    """
    results = list(results)
    shares = [weight * result.score for weight, result in zip(weights, results, strict=True)]
    total = round(fsum(shares) / fsum(weights), DECIMALS)
    return ContractResult(score=min(1.0, max(0.0, total)), scoring_function_results=results)


def blamed(result: ContractResult, control: ContractResult) -> ContractResult:
    """Give a 0 to each function in error that is in none on the untouched environment, which `control` is of.

    What fails again and again with what an agent left, and not without it, is no fault of the scorer. The total is as
    it was: a function in error has counted 0 in it.
    """
    sound = {each.scoring_function_name for each in control.scoring_function_results} - set(control.faults())
    judged = []
    for each in result.scoring_function_results:
        name = each.scoring_function_name
        if each.state is FunctionState.COMPLETE or name not in sound or each.is_own:
            judged.append(each)
            continue
        reason = each.output.rstrip().rpartition("\n")[2]
        broken = f"it fails with what the agent left, and not without it: {reason}"
        output = f"{each.output}scorer {name}: {broken}\n"
        judged.append(replaced(each, score=0.0, state=FunctionState.COMPLETE, output=output, broken=broken))
    return replaced(result, scoring_function_results=judged)
