"""The fold: what the events of a journal add up to."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from orchestrator.core.errors import InternalError
from orchestrator.core.events import (
    AgentStarted,
    AttemptEnded,
    BenchmarkRunEnded,
    BenchmarkRunIntended,
    BenchmarkRunStarted,
    Event,
    ExecutionStarted,
    OutputKept,
    RunStarted,
    StageEntered,
    StageFinished,
    StepEnded,
    SweepEnded,
    SweepOpened,
    TrialFinished,
    TrialReopened,
    Unknown,
)
from orchestrator.core.ledger import MAX_MESSAGE, Ledger, fold
from orchestrator.core.records import Outcome, TrialKey
from orchestrator.core.stages import Stage

ROAD = [stage for stage in Stage if stage is not Stage.RELEASE]


def entered(stage: str, *, trial: str = "s/a/1", attempt: int = 1) -> StageEntered:
    return StageEntered(trial=trial, attempt=attempt, stage=Stage(stage), at=5.0)


def left(stage: str, *, trial: str = "s/a/1", attempt: int = 1) -> StageFinished:
    return StageFinished(trial=trial, attempt=attempt, stage=Stage(stage), seconds=1.0)


def ended(*, trial: str = "s/a/1", attempt: int = 1, counted: bool = True) -> AttemptEnded:
    failure = {"class": "DevboxLost", "message": "gone", "stage": "boot"}
    return AttemptEnded(trial=trial, attempt=attempt, failure=failure, counted=counted)


def finished(*, trial: str = "s/a/1", attempt: int = 1, outcome: str = "scored", score: Any = 1.0) -> TrialFinished:
    failure = {"class": "Refused", "message": "no", "stage": "start"} if outcome == "failed" else None
    result = {"outcome": outcome, "score": score, "flags": ["agent_crashed"], "failure": failure}
    stages = {"boot": {"seconds": 2.0, "waited": 9.0}, "solve": {"seconds": 3.0, "waited": 0.0}}
    return TrialFinished(trial=trial, attempt=attempt, result=result | {"stages": stages})


def while_solving(trial: str, attempt: int) -> list[Event]:
    return [
        ExecutionStarted(trial=trial, attempt=attempt, execution="exec"),
        AgentStarted(trial=trial, attempt=attempt, pid=7, birth="boot 1"),
        OutputKept(trial=trial, attempt=attempt, offset=9, length=8),
    ]


@st.composite
def trial_events(draw: st.DrawFn, trial: str) -> list[Event]:
    """Possible events of one trial until its process ends, at any point."""
    events: list[Event] = []
    for attempt in range(1, draw(st.integers(1, 3)) + 1):
        is_last = draw(st.booleans())
        for stage in ROAD if is_last else ROAD[: draw(st.integers(1, len(ROAD)))]:
            events.append(entered(stage, trial=trial, attempt=attempt))
            if stage is not Stage.PREPARE:
                events += [entered(stage, trial=trial, attempt=attempt)] * draw(st.integers(0, 2))
            if stage is Stage.START:
                events.append(RunStarted(trial=trial, attempt=attempt, run="scr", devbox="dbx"))
            if stage is Stage.SOLVE:
                events += draw(st.permutations(while_solving(trial, attempt)))
            events.append(left(stage, trial=trial, attempt=attempt))
        events.append(
            finished(trial=trial, attempt=attempt, outcome=draw(st.sampled_from(["scored", "failed"])))
            if is_last
            else ended(trial=trial, attempt=attempt, counted=draw(st.booleans()))
        )
        events += [entered("release", trial=trial, attempt=attempt), left("release", trial=trial, attempt=attempt)]
        if is_last:
            break
    return events[: draw(st.integers(0, len(events)))]


@st.composite
def sweeps(draw: st.DrawFn) -> list[Event]:
    """Any interleaving of several trials' events."""
    queues = [draw(trial_events(f"s{number}/a/1")) for number in range(draw(st.integers(1, 4)))]
    events = []
    while queues := [queue for queue in queues if queue]:
        events.append(draw(st.sampled_from(queues)).pop(0))
    return events


@given(sweeps())
def test_counts_agree_with_the_trials_after_every_event(events: list[Event]) -> None:
    ledger = Ledger()
    for event in events:
        ledger.apply(event)
        trials = ledger.trials.values()
        under_way = [trial.attempt for trial in trials if trial.attempt is not None]
        assert ledger.stages.total() == len(under_way) == len(ledger.unreleased())
        assert set(ledger.held) == {key for key, trial in ledger.trials.items() if trial.attempt is not None}
        assert all(ledger.stages[stage] == sum(each.stage == stage for each in under_way) for stage in Stage)
        assert ledger.outcomes.total() == len(ledger.finished) == sum(trial.outcome is not None for trial in trials)
        assert all(trial.counted <= trial.attempts for trial in trials)
    order = [TrialKey.parse(event.trial) for event in events if isinstance(event, TrialFinished)]
    assert ledger.finished == order


@given(sweeps())
def test_reading_a_journal_twice_gives_the_same_state(events: list[Event]) -> None:
    assert vars(fold(events)) == vars(fold(events))


@given(sweeps(), st.integers(0, 60))
def test_a_crash_is_only_stop_reading_here(events: list[Event], cut: int) -> None:
    """Events folded before a crash and those appended after it add up to the same as without it."""
    ledger = fold(events[:cut])
    for event in events[cut:]:
        ledger.apply(event)
    assert vars(ledger) == vars(fold(events))


SCORED = [entered("start"), *(entered(stage) for stage in ROAD[1:]), finished()]


@pytest.mark.parametrize(
    ("before", "event"),
    [
        ([], entered("boot")),
        ([], entered("start", attempt=2)),
        ([], entered("start", trial="no slashes")),
        ([], left("start")),
        ([], ended()),
        ([], RunStarted(trial="s/a/1", attempt=1, run="r", devbox="d")),
        ([], TrialReopened(trial="s/a/1")),
        ([], BenchmarkRunEnded(arm="a", number=1, run="r")),
        ([], finished(outcome="splendid")),
        ([], TrialFinished(trial="s/a/1", attempt=1, result={})),
        ([entered("start"), entered("boot"), entered("prepare")], entered("prepare")),
        ([entered("start")], entered("start", attempt=3)),
        ([entered("start")], left("boot")),
        ([entered("start")], left("start", attempt=2)),
        ([entered("start")], TrialReopened(trial="s/a/1")),
        ([entered("start")], AttemptEnded(trial="s/a/1", attempt=1, failure={}, counted=True)),
        ([entered("start")], ExecutionStarted(trial="s/a/1", attempt=2, execution="e")),
        (SCORED, finished()),
        (SCORED, entered("start", attempt=2)),
        ([entered(stage) for stage in ROAD], entered("prepare")),
        ([entered(stage) for stage in ROAD], StepEnded(trial="s/a/1", attempt=1, result={})),
    ],
)
def test_an_event_that_cannot_follow_is_refused_and_changes_nothing(before: list[Event], event: Event) -> None:
    ledger = fold(before)
    state = deepcopy(vars(ledger))
    with pytest.raises(InternalError, match=r"The journal|cannot go from"):
        ledger.apply(event)
    assert vars(ledger) == state


def test_a_step_that_ended_leaves_its_result_and_the_attempt_as_if_it_had_just_booted() -> None:
    """What is journaled of the next step is of that alone; what the first one's agent spent is counted once."""
    spent = {"usage": {"cost_usd": 1.5}}
    first = [*map(entered, ROAD), structs.replace(left("score"), facts=spent)]
    ended = StepEnded(trial="s/a/1", attempt=1, result={"name": "one"})
    ledger = fold([*first, ended])
    attempt = ledger.trials[TrialKey.parse("s/a/1")].attempt
    assert attempt is not None
    assert (attempt.steps, attempt.facts, attempt.stages, attempt.finished) == ([{"name": "one"}], {}, {}, None)
    assert attempt.entries == 0
    for event in (entered("prepare"), entered("prepare"), entered("solve")):
        ledger.apply(event)
    assert (attempt.stage, attempt.entries) == (Stage.SOLVE, 1)
    ledger.apply(finished())
    assert ledger.cost == 1.5


def test_an_attempt_is_known_by_what_it_holds_on_the_endpoint() -> None:
    events = [
        entered("start"),
        RunStarted(trial="s/a/1", attempt=1, run="scr_1", devbox="dbx_1"),
        *(entered(stage) for stage in ("boot", "prepare", "solve")),
        ExecutionStarted(trial="s/a/1", attempt=1, execution="exec_1"),
    ]
    [(key, attempt)] = fold(events).unreleased()
    assert key == TrialKey("s", "a", 1)
    assert (attempt.run, attempt.devbox, attempt.execution, attempt.stage) == ("scr_1", "dbx_1", "exec_1", "solve")
    assert attempt.since == 5.0


def test_only_counted_attempts_use_up_the_trials_attempts() -> None:
    events = [entered("start"), ended(counted=False), entered("release"), left("release"), entered("start", attempt=2)]
    trial = fold([*events, ended(attempt=2)]).trials[TrialKey("s", "a", 1)]
    assert (trial.attempts, trial.counted, trial.last_ended) == (2, 1, 2)
    assert [failure["attempt"] for failure in trial.failures] == [1, 2]


@pytest.mark.parametrize("end", [ended(counted=True), finished()])
def test_the_first_end_of_an_attempt_counts_and_another_says_nothing(end: Event) -> None:
    """A process stopped while it writes an end cannot know that it is there, and the next one writes it again."""
    ledger = fold([entered("start"), end])
    state = deepcopy(vars(ledger))
    ledger.apply(ended(counted=False))
    assert vars(ledger) == state


def test_a_finished_trial_has_its_result_and_is_unreleased_until_its_devbox_is_gone() -> None:
    ledger = fold(SCORED)
    trial = ledger.trials[TrialKey("s", "a", 1)]
    assert (trial.outcome, trial.score, trial.flags, trial.seconds) == (Outcome.SCORED, 1.0, ("agent_crashed",), 5.0)
    assert ledger.is_finished(TrialKey("s", "a", 1))
    assert ledger.unreleased()
    ledger.apply(entered("release"))
    ledger.apply(left("release"))
    assert ledger.unreleased() == []
    assert ledger.stages.total() == 0


def test_a_reopened_trial_begins_again_and_keeps_counting_its_attempts() -> None:
    ledger = fold([*SCORED, entered("release"), left("release"), TrialReopened(trial="s/a/1")])
    assert not ledger.is_finished(TrialKey("s", "a", 1))
    assert (ledger.finished, ledger.outcomes.total()) == ([], 0)
    ledger.apply(entered("start", attempt=2))
    for stage in ROAD[1:]:
        ledger.apply(entered(stage, attempt=2))
    ledger.apply(finished(attempt=2, outcome="failed", score=None))
    trial = ledger.trials[TrialKey("s", "a", 1)]
    assert (trial.outcome, trial.score, trial.failure, trial.attempts) == (Outcome.FAILED, None, "Refused", 2)


def test_the_latest_failures_are_kept_and_no_more() -> None:
    events: list[Event] = []
    for number in range(9):
        events += [entered("start", trial=f"s{number}/a/1"), ended(trial=f"s{number}/a/1")]
    latest = fold(events).latest_failures
    assert [notice.trial.scenario for notice in latest] == ["s4", "s5", "s6", "s7", "s8"]


def test_an_uncounted_end_is_no_news() -> None:
    assert fold([entered("start"), ended(counted=False)]).latest_failures == []


def test_a_benchmark_run_is_intended_started_and_ended_and_another_round_replaces_it() -> None:
    ledger = fold([BenchmarkRunIntended(arm="a", number=1)])
    assert ledger.benchmark_runs["a", 1].run is None
    ledger.apply(BenchmarkRunStarted(arm="a", number=1, run="bmr_1"))
    ledger.apply(BenchmarkRunEnded(arm="a", number=1, run="bmr_1"))
    assert ledger.benchmark_runs["a", 1].is_ended
    ledger.apply(BenchmarkRunIntended(arm="a", number=1, round=2))
    state = ledger.benchmark_runs["a", 1]
    assert (state.round, state.run, state.is_ended) == (2, None, False)


def test_events_of_a_later_version_are_skipped() -> None:
    assert vars(fold([Unknown(data={"event": "moon.rose"})])) == vars(Ledger())


def test_a_sweep_that_is_opened_again_has_not_ended() -> None:
    opened = SweepOpened(sweep="x", schema=1, version="0", pid=1)
    ledger = fold([structs.replace(opened, at=100.0), SweepEnded(reason="stopped", at=130.0)])
    assert (ledger.opened, ledger.ended) == (1, "stopped")
    ledger.apply(structs.replace(opened, at=1000.0))
    assert (ledger.opened, ledger.ended) == (2, None)
    assert ledger.worked_seconds(1007.0) == 37.0, "the time between two processes counts for nothing"


def test_a_result_began_with_the_first_attempt_that_led_to_it() -> None:
    key = TrialKey("s", "a", 1)
    ledger = fold([structs.replace(entered("start"), at=3.0), structs.replace(entered("start"), at=4.0), ended()])
    assert ledger.trials[key].began == 3.0
    ledger = fold([*SCORED, entered("release"), left("release"), TrialReopened(trial="s/a/1")])
    assert ledger.trials[key].began is None
    ledger.apply(structs.replace(entered("start", attempt=2), at=9.0))
    assert ledger.trials[key].began == 9.0


def test_the_ledger_keeps_the_agents_end_its_time_and_the_failure_of_a_result() -> None:
    trial = fold([finished()]).trials[TrialKey("s", "a", 1)]
    assert (trial.seconds, trial.agent_seconds, trial.exit_status, trial.message) == (5.0, 3.0, None, "")
    event = finished(outcome="failed", score=None)
    crashed = structs.replace(event, result={**event.result, "exit_status": 3, "stages": {}})
    trial = fold([crashed]).trials[TrialKey("s", "a", 1)]
    assert (trial.seconds, trial.agent_seconds, trial.exit_status, trial.message) == (0.0, 0.0, 3, "no")
    page = {"class": "Refused", "message": "x" * 10_000, "stage": "start"}
    long = structs.replace(event, result={**event.result, "failure": page})
    assert fold([long]).trials[TrialKey("s", "a", 1)].message == "x" * MAX_MESSAGE


def test_tokens_of_every_attempt_are_counted_once_and_what_is_no_number_is_none() -> None:
    """Taken like costs: from a stage that finished, else from the result."""

    def solved(usage: Any, trial: str) -> list[Event]:
        worked = structs.replace(left("solve", trial=trial), facts={"usage": usage})
        return [*(entered(stage, trial=trial) for stage in ROAD[:4]), worked]

    def scored(usage: Any, trial: str) -> TrialFinished:
        event = finished(trial=trial)
        return structs.replace(event, result={**event.result, "usage": usage})

    reported = {"input_tokens": 10, "output_tokens": 2.0, "cached_tokens": 9}
    events = [*solved(reported, "s/a/1"), scored(reported, "s/a/1"), *solved({"output_tokens": 7}, "s/b/1")]
    unusual: list[Any] = [None, [], {"input_tokens": "9"}, reported]
    odd = [scored(usage, f"s/c/{number}") for number, usage in enumerate(unusual)]
    ledger = fold([*events, *odd])
    assert ledger.tokens == {"a": 12, "b": 7, "c": 12}
    assert {str(key): trial.tokens for key, trial in ledger.trials.items() if trial.tokens} == {
        "s/a/1": 12,
        "s/b/1": 7,
        "s/c/3": 12,
    }


def test_an_attempt_tells_when_it_began_and_when_its_output_last_grew() -> None:
    kept = OutputKept(trial="s/a/1", attempt=1, offset=9, length=8, at=60.0)
    ledger = fold([*(entered(stage) for stage in ROAD[:4]), kept, structs.replace(kept, offset=11, at=90.0)])
    attempt = ledger.trials[TrialKey("s", "a", 1)].attempt
    assert attempt is not None
    assert (attempt.began, attempt.grew) == (5.0, 60.0)
