"""The live picture, pulled from a ledger, in its three formats."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

from orchestrator.core.events import Event, StageEntered, StageFinished, StepEnded, TrialReopened
from orchestrator.core.ledger import Ledger, fold
from orchestrator.core.plan import Plan
from orchestrator.core.records import StepLimits, TrialKey
from orchestrator.core.stages import Stage
from orchestrator.testing.clock import run_virtually
from orchestrator.view.console import Window
from orchestrator.view.formats import JSON, LINES, SCREEN, Format
from orchestrator.view.progress import SUMMARY_S, Progress, tell_slow_phases

from .conftest import State, again, failed, make_plan, scored, settle, threads

NIGHT: list[Event] = [
    scored("s0/a/1", 1.0, flags=["agent_timed_out"]),
    *again("s1/a/1", "devbox dbx_7 died"),
    failed("s2/a/1", message="three attempts, three dead devboxes"),
]


def make(
    ledger: Ledger, plan: Plan, output: Format, state: State | None = None, *, opening: str = "Starting night"
) -> Progress:
    return Progress(
        ledger=ledger,
        plan=plan,
        state=state or State(),
        folder=Path("runs/night"),
        output=output,
        opening=opening,
    )


def watch(progress: Progress, ledger: Ledger, events: Iterator[Event], *, every: float = 1.0) -> None:
    """Show the picture while these events happen, one after another, and a little longer; then finish."""

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(progress.show)
            for event in events:
                await anyio.sleep(every)
                ledger.apply(event)
            await anyio.sleep(1)
            tasks.cancel_scope.cancel()
        progress.finish()

    run_virtually(main)


def screen(progress: Progress, width: int, height: int = 60) -> str:
    window = Window(width=width, height=height, is_coloured=False)
    return "\n".join(progress._picture.lines(window, [*progress._remarks().values()]))


def test_plain_lines_tell_each_finished_trial_once(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger()
    progress = make(ledger, make_plan("x", "y", "z", trials=2), LINES)
    watch(progress, ledger, iter([*NIGHT, scored("s0/a/2", 0.5)]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Starting night: 6 trials, 6 to do."
    assert [line for line in lines if line.startswith("[")] == [
        "[1/6] x #1  1.000 (agent_timed_out)  1:00",
        "[2/6] z #1  failed: DevboxLost: three attempts, three dead devboxes  0 s",
        "[3/6] x #2  0.500  1:00",
    ]
    assert "Results: runs/night/results.jsonl" in lines
    assert lines[-1] == "Next: sweep resume night, sweep failures night"


def test_a_trial_of_several_steps_tells_which_of_them_it_does() -> None:
    plan = make_plan("x", "y")
    steps = tuple(StepLimits(name=name) for name in ("one", "two", "three"))
    plan = replace(plan, scenarios=tuple(replace(each, steps=steps) for each in plan.scenarios))
    trial, stages = "s0/a/1", [stage for stage in Stage if stage is not Stage.RELEASE]
    ledger = fold(StageEntered(trial=trial, attempt=1, stage=stage) for stage in stages)
    ledger.apply(StageFinished(trial=trial, attempt=1, stage=Stage.SCORE, seconds=1.0))
    ledger.apply(StepEnded(trial=trial, attempt=1, result={"name": "one"}))
    ledger.apply(StageEntered(trial=trial, attempt=1, stage=Stage.PREPARE))
    state = State(trials=[TrialKey.parse(trial)])
    assert "two 2/3 installing" in screen(make(ledger, plan, SCREEN, state), 120)


def test_a_resumed_sweep_tells_only_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = fold(NIGHT)
    progress = make(ledger, make_plan("x", "y", "z"), LINES, opening="Resuming night")
    watch(progress, ledger, iter([scored("s1/a/1", 0.0)]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Resuming night: 3 trials, 1 to do."
    assert [line for line in lines if line.startswith("[")] == ["[3/3] y  0.000  1:00"]


def test_a_trial_that_is_run_again_is_reported_again_to_a_follower(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = fold([scored("s0/a/1", 1.0), scored("s1/a/1", 0.0), scored("s2/a/1", 1.0)])
    progress = make(ledger, make_plan("x", "y", "z"), LINES)
    watch(progress, ledger, iter([TrialReopened(trial="s1/a/1"), scored("s1/a/1", 1.0)]))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("[")] == ["[3/3] y  1.000  1:00"]
    assert progress._counts.headline == "3/3 done · 0 running · 0 queued · mean 1.000"


def test_a_trial_finished_after_the_last_look_is_reported_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger()
    progress = make(ledger, make_plan("x"), LINES)
    ledger.apply(scored("s0/a/1", 1.0))
    progress.finish()
    assert "[1/1] x  1.000  1:00" in capsys.readouterr().out.splitlines()


def test_plain_lines_have_a_summary_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger()
    progress = make(ledger, make_plan("x", "y"), LINES)
    start = StageEntered(trial="s0/a/1", attempt=1, stage=Stage.START)
    watch(progress, ledger, iter([start]), every=3.5 * SUMMARY_S)
    summaries = [line for line in capsys.readouterr().out.splitlines() if " queued · " in line]
    assert summaries == ["0/2 done · 0 running · 2 queued · mean -"] * 3


def test_json_lines_are_one_a_trial_and_the_arms_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger()
    progress = make(ledger, make_plan("x", "y", "z"), JSON)
    watch(progress, ledger, iter(NIGHT))
    out, err = capsys.readouterr()
    first, second, last = map(orjson.loads, out.splitlines())
    assert (first["event"], first["scenario_name"], first["score"]) == ("trial", "x", 1.0)
    assert (second["outcome"], second["score"], second["failure"]) == ("failed", None, "DevboxLost")
    assert (last["event"], last["folder"], last["arms"][0]["scored"]) == ("sweep", "runs/night", 1)
    assert err.startswith("Starting night")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_screen_fits_any_width_and_tells_of_failures(width: int) -> None:
    state = State(stop="SIGINT", in_flight={Stage.SOLVE: 2}, devboxes=3, is_reduced=True)
    progress = make(fold(NIGHT), make_plan("x", "y", "z"), SCREEN, state)
    drawn = screen(progress, width)
    assert max(len(line) for line in drawn.splitlines()) <= width
    assert "again  y" in drawn
    assert "failed  z" in drawn


def test_the_screen_says_how_far_it_is_and_what_holds_it_up() -> None:
    state = State(phase="draining", devboxes=3, is_reduced=True, troubles=["New work waits: the disk is full."])
    drawn = screen(make(fold(NIGHT), make_plan("x", "y", "z", "w"), SCREEN, state), 200)
    assert "2/4 done · 1 running · 1 queued · mean 1.000 · 1 failed" in drawn
    assert "start 1" in drawn
    assert "devboxes 0/3, the endpoint pushes back" in drawn
    assert "draining · start 1" in drawn
    assert "New work waits: the disk is full." in drawn
    assert "again  y  DevboxLost: devbox dbx_7 died" in drawn


def test_a_devbox_on_its_way_out_runs_no_trial() -> None:
    start = [
        StageEntered(trial="s0/a/1", attempt=1, stage=Stage.START),
        StageFinished(trial="s0/a/1", attempt=1, stage=Stage.START, seconds=1),
    ]
    events = [*start, StageEntered(trial="s0/a/1", attempt=1, stage=Stage.RELEASE)]
    assert "0/1 done · 0 running" in screen(make(fold(events), make_plan("x"), SCREEN), 200)


def test_failures_outside_the_plan_are_not_counted() -> None:
    events = [failed("s0/a/1"), failed("s9/a/1")]
    assert "1/1 done · 0 running · 0 queued · mean - · 1 failed" in screen(
        make(fold(events), make_plan("x"), SCREEN), 200
    )


def test_a_terminal_is_drawn_on_while_trials_finish(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    ledger = Ledger()

    def events() -> Iterator[Event]:
        for event in (*NIGHT, StageEntered(trial="s1/a/1", attempt=2, stage=Stage.START)):
            yield event
            settle()  # what was drawn before it

    with threads():
        progress = make(ledger, make_plan("x", "y", "z"), SCREEN)
        progress.say("Stopping soon")
        watch(progress, ledger, events())
        settle()
    out = capfd.readouterr().out
    assert "2/3 done" in out
    assert "Stopping soon" in out


@pytest.mark.parametrize("output", [LINES, SCREEN], ids=["lines", "screen"])
@pytest.mark.parametrize("name", ["[red]alarm[/red]", "[/bold]", ":bug:", "[link=x]", "\\[x]"])
def test_names_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, output: Format, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    ledger = fold([scored(f"s0/{name}/1", 1.0), *again(f"s1/{name}/1", f"{name} broke")])
    progress = make(ledger, make_plan(name, name, arms=(name, "other")), output)
    progress.say(f"say {name}")
    drawn = screen(progress, 200) if output is SCREEN else ""
    watch(progress, ledger, iter([scored(f"s1/{name}/1", 0.5)]))
    out = capsys.readouterr().out
    assert name in out.splitlines()[-5]
    if output is LINES:
        assert f"[2/4] {name} {name}  0.500" in out
    else:
        assert f"again  {name} {name}  DevboxLost: {name} broke" in drawn
    assert f"say {name}" in out


def test_output_of_an_agent_cannot_take_over_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    events = again("s0/a/1", "boom\x1b]0;pwned\x07\x1b[2J\r\nsecond line")
    drawn = screen(make(fold(events), make_plan("x\x1b[31m"), SCREEN), 200)
    assert "\x1b" not in drawn
    assert "\x07" not in drawn
    assert "boom" in drawn


def asked(**more: Any) -> State:
    """A stop by Ctrl-C, with three at work and one being scored."""
    facts: dict[str, Any] = {"stop": "SIGINT", "is_asked_to_stop": True, "longest_left": 2460.0}
    return State(**facts | {"in_flight": {Stage.SOLVE: 3, Stage.SCORE: 1}} | more)


@pytest.mark.parametrize("output", [LINES, JSON], ids=["lines", "json"])
def test_a_stop_says_once_what_it_waits_for_and_how_long_at_most(
    capsys: pytest.CaptureFixture[str], output: Format
) -> None:
    state, ledger = asked(), Ledger()
    progress = make(ledger, make_plan("x", "y"), output, state)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(progress.show)
            await anyio.sleep(3)
            state.in_flight, state.longest_left = {Stage.SOLVE: 2}, 2457.0
            await anyio.sleep(3)
            state.is_ending = True
            await anyio.sleep(3)
            tasks.cancel_scope.cancel()
        progress.finish()

    run_virtually(main)
    out, err = capsys.readouterr()
    lines = [line for line in (err if output is JSON else out).splitlines() if "Stopp" in line or "Ending" in line]
    assert lines == [
        (
            "Stopping: Ctrl-C. No new trials start, running trials finish: 3 solving, 1 scoring; at most 41:00 more. "
            "Press Ctrl-C again to end them now."
        ),
        "Ending the agents and releasing the devboxes.",
        "Stopped: Ctrl-C. 2 of 2 trials are left: run the sweep again for them.",
    ]
    if output is JSON:
        assert orjson.loads(out.splitlines()[-1])["stopped"] == "SIGINT"


def test_the_screen_counts_down_what_a_stop_waits_for() -> None:
    state = asked()
    progress = make(Ledger(), make_plan("x"), SCREEN, state)
    assert "3 solving, 1 scoring; at most 41:00 more. Press Ctrl-C again" in screen(progress, 200)
    state.longest_left = 60.0
    assert "at most 1:00 more" in screen(progress, 200)


def test_a_budget_that_stops_the_sweep_takes_two_ctrl_cs_to_end_what_is_in_flight() -> None:
    state = asked(stop="--max-cost 5 is used up", is_asked_to_stop=False)
    drawn = screen(make(Ledger(), make_plan("x"), SCREEN, state), 300)
    assert "Stopping: --max-cost 5 is used up." in drawn
    assert "Press Ctrl-C twice" in drawn


def test_a_stop_with_nothing_left_to_do_is_not_reported_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    make(fold([scored("s0/a/1", 1.0)]), make_plan("x"), LINES, State(stop="SIGINT")).finish()
    assert "Stopped" not in capsys.readouterr().out


def test_a_long_phase_is_reported_once_and_a_short_one_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    state = State(phase="reconciling")
    progress = make(Ledger(), make_plan("x"), LINES, state)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(progress.show)
            for phase, seconds in (("reconciling", 5), ("running", 9), ("completing", 1), ("reconciling", 3)):
                state.phase = phase
                await anyio.sleep(seconds)
            tasks.cancel_scope.cancel()

    run_virtually(main)
    assert [line for line in capsys.readouterr().out.splitlines() if "…" in line] == ["Reconciling …"] * 2


@pytest.mark.parametrize(("output", "seconds"), [(SCREEN, 4), (LINES, 12)], ids=["screen", "lines"])
def test_slow_phases_before_the_picture_are_announced(
    capsys: pytest.CaptureFixture[str], output: Format, seconds: float
) -> None:
    state = State(phase="starting the service")

    async def main() -> None:
        opened = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tell_slow_phases, state, output, opened)
            await anyio.sleep(seconds)
            state.phase = "opening the journal"
            await anyio.sleep(1)
            opened.set()

    run_virtually(main)
    assert capsys.readouterr().out == "Starting the service …\n"


def test_a_trouble_is_reported_when_it_comes_and_again_when_it_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    state = State()
    progress = make(Ledger(), make_plan("x"), LINES, state)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(progress.show)
            for troubles in (["full for 1 s"], ["full for 2 s"], [], ["full for 1 s"]):
                state.troubles = troubles
                await anyio.sleep(1)
            tasks.cancel_scope.cancel()

    run_virtually(main)
    assert [line for line in capsys.readouterr().out.splitlines() if "full" in line] == ["full for 1 s"] * 2
