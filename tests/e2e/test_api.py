"""`import orchestrator`: sweeps in a program of the user's, which keeps its signals, its output and its logging."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import anyio
import pytest
import structlog

import orchestrator
from orchestrator.core.records import TrialKey
from orchestrator.core.stages import Stage
from orchestrator.rundir.recorded import SweepState

if TYPE_CHECKING:
    from .conftest import Desk, Service


@pytest.fixture
def keyed(service: "Service", monkeypatch: pytest.MonkeyPatch) -> str:
    """The endpoint that the tests share; its key is in the environment, as a program has it."""
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    return service.url


def config(endpoint: str, agent: str, name: str) -> orchestrator.SweepConfig:
    return orchestrator.SweepConfig(
        benchmark="six", arms=(orchestrator.ArmConfig(agent=agent),), limit=2, name=name, endpoint=endpoint
    )


def test_the_import_is_quick_and_names_what_there_is() -> None:
    code = (
        "import sys, orchestrator; print([each for each in ('anyio', 'pydantic', 'rich') if each in sys.modules]);"
        "print({'load', 'run', 'SweepConfig', '__version__'} <= {*dir(orchestrator)}); orchestrator.nothing"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout == "[]\nTrue\n"
    assert ended.stderr.endswith("AttributeError: module 'orchestrator' has no attribute 'nothing'\n")


def test_a_sweep_runs_in_a_thread_and_leaves_the_program_as_it_was(
    served: "Desk", keyed: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    logging = structlog.get_config()
    runs = served.folder / "runs"
    swept: list[orchestrator.LoadedSweep] = []

    def program() -> None:
        swept.append(asyncio.run(orchestrator.run(config(keyed, "oracle", "quiet"), runs=runs)))

    thread = Thread(target=program)
    thread.start()
    thread.join()
    (sweep,) = swept
    assert (sweep.name, sweep.state, [arm.mean for arm in sweep.arms]) == ("quiet", SweepState.FINISHED, [1.0])
    assert [trial.outcome for trial in sweep.trials.values()] == ["scored", "scored"]
    assert [row["score"] for row in sweep.rows] == [1.0, 1.0]
    assert 'sweep_trials_finished{sweep="quiet",arm="oracle",outcome="scored"} 2\n' in sweep.metrics
    assert capfd.readouterr() == ("", "")
    assert before == {each: signal.getsignal(each) for each in before}
    assert logging == structlog.get_config()
    assert (runs / "quiet/sweep.log").stat().st_size

    asyncio.run(orchestrator.run(config(keyed, "oracle", "quiet"), runs=runs, show=True))
    assert "Resuming quiet: 2 trials, 0 to do." in capfd.readouterr().out


def test_a_canceled_sweep_releases_what_it_holds_and_is_stopped(served: "Desk", keyed: str, service: "Service") -> None:
    """`served` sees that nothing is left on the endpoint."""
    runs = served.folder / "runs"

    async def cancel_when_it_works() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: orchestrator.run(config(keyed, "command:sleep 300", "cut"), runs=runs))
            while True:
                await anyio.sleep(0.05)
                if (runs / "cut/journal.jsonl").exists():
                    stages = orchestrator.load(runs / "cut").ledger.stages
                    if stages[Stage.SOLVE] == 2:
                        tasks.cancel_scope.cancel()
                        return

    asyncio.run(cancel_when_it_works())
    sweep = orchestrator.load(runs / "cut")
    assert sweep.state is SweepState.STOPPED
    assert sweep.ledger.ended == "stopped: canceled by its program"
    assert [trial.interrupted for trial in sweep.trials.values()] == [1, 1]


def test_mistakes_are_our_errors(served: "Desk", keyed: str, tmp_path: Path) -> None:
    with pytest.raises(orchestrator.SweepError, match=r"tmp.* is not a sweep: it has no manifest\.json"):
        orchestrator.load(tmp_path)
    with pytest.raises(orchestrator.SweepError, match="--agent nobody: there is no such agent"):
        asyncio.run(orchestrator.run(config(keyed, "nobody", "never"), runs=tmp_path))
    arms = tuple(orchestrator.ArmConfig(agent="nop", model=model) for model in (None, "a", "b"))
    named = orchestrator.SweepConfig(benchmark="six", arms=arms).arms
    assert [TrialKey("s", arm.name, 1).arm for arm in named] == ["nop", "nop+a", "nop+b"]
