"""The benchmark run of each arm and trial number: started by its first trial, completed after the last one."""

from contextlib import suppress

import anyio
import structlog

from orchestrator.core.errors import Missing, SweepCanceled
from orchestrator.core.events import BenchmarkRunEnded, BenchmarkRunIntended, BenchmarkRunStarted, Sink
from orchestrator.core.ledger import Ledger
from orchestrator.core.protocol import BenchmarkRunState
from orchestrator.endpoint.protocols import Runs


class BenchmarkRuns:
    """Gives the id of a run that is `running` on the endpoint: `of(arm, number)`."""

    def __init__(self, *, sweep: str, benchmark_id: str, endpoint: Runs, sink: Sink, ledger: Ledger) -> None:
        self._sweep = sweep
        self._benchmark_id = benchmark_id
        self._endpoint = endpoint
        self._sink = sink
        self._ledger = ledger
        self._lock = anyio.Lock()
        #: Runs that this process has seen running.
        self._alive: dict[tuple[str, int], str] = {}

    async def of(self, arm: str, number: int) -> str:
        """Find or start the running benchmark run of an arm and number; returns its id.

        Raises SweepCanceled when somebody canceled it.
        """
        async with self._lock:
            if (arm, number) not in self._alive:
                self._alive[arm, number] = await self._find(arm, number) or await self._start(arm, number)
            return self._alive[arm, number]

    async def following(self, arm: str, number: int, run: str) -> str:
        """Find or start the benchmark run that follows `run`, which somebody else may have ended; returns its id."""
        async with self._lock:
            if self._alive.get((arm, number)) == run:
                del self._alive[arm, number]
        return await self.of(arm, number)

    async def complete_all(self) -> None:
        """Complete every benchmark run that is not known to have ended, after the last trial."""
        for (arm, number), state in list(self._ledger.benchmark_runs.items()):
            if state.run is not None and not state.is_ended:
                with suppress(Missing):
                    await self._endpoint.complete_benchmark_run(state.run)
                await self._sink.append(BenchmarkRunEnded(arm=arm, number=number, run=state.run))

    async def _find(self, arm: str, number: int) -> str | None:
        """The journaled run if it is still running; the endpoint may have forgotten it."""
        known = self._ledger.benchmark_runs.get((arm, number))
        if known is None or known.run is None or known.is_ended:
            return None
        try:
            run = await self._endpoint.benchmark_run(known.run)
        except Missing as error:
            structlog.get_logger().warning("benchmark_run.missing", run=known.run, error=error.message)
            return None
        if run.state == BenchmarkRunState.CANCELED:
            raise SweepCanceled(
                f"Benchmark run {run.id} ({arm}, trial {number}) was canceled by somebody else, so the sweep stops. "
                "Its results are kept; to run what is left, give another --name."
            )
        return run.id if run.state == BenchmarkRunState.RUNNING else None

    async def _start(self, arm: str, number: int) -> str:
        known = self._ledger.benchmark_runs.get((arm, number))
        is_owed = known is not None and known.run is None
        number_of_run = known.round + (not is_owed) if known else 1
        name = f"{self._sweep}/{arm}/{number}"
        run = None
        if is_owed:  # it may be started already, but its id was not journaled, and not every endpoint knows our keys
            running = await self._endpoint.list_benchmark_runs(
                benchmark=self._benchmark_id, state=BenchmarkRunState.RUNNING
            )
            run = next((each for each in running if each.name == name), None)
        if run is None:
            await self._sink.append(BenchmarkRunIntended(arm=arm, number=number, round=number_of_run))
            run = await self._endpoint.start_benchmark_run(
                self._benchmark_id,
                name=name,
                metadata={"sweep": self._sweep, "arm": arm, "number": str(number)},
                key=f"{self._sweep} {arm} {number} run {number_of_run}",
            )
        await self._sink.append(BenchmarkRunStarted(arm=arm, number=number, run=run.id, round=number_of_run))
        return run.id
