"""`sweep check`: is a benchmark sound?"""

from typing import Annotated

import anyio
import typer

from orchestrator.cli.options import RUNS, IsolationOption, LockOption, RunsOption


def check(
    benchmark: Annotated[str, typer.Argument(help="A bundled benchmark's name, a benchmark folder, or a scenario's.")],
    *,
    static: Annotated[bool, typer.Option("--static", help="Only read the definitions; run nothing.")] = False,
    isolation: IsolationOption = "local",
    lock: LockOption = "file",
    runs: RunsOption = RUNS,
) -> None:
    """Check a benchmark's definitions, then prove it: the reference solution scores 1.0, doing nothing scores less.

    Names file and key of each mistake. Exit code 1 if there is any. What ran is kept like any sweep.
    """
    from orchestrator.commands.check import check as run_check
    from orchestrator.view.console import write_by_threads

    if not static:
        write_by_threads()
    raise typer.Exit(
        anyio.run(lambda: run_check(benchmark, isolation=isolation, is_static=static, runs=runs, lock=lock))
    )
