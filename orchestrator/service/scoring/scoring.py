"""Scoring as the rest of the service sees it: check a contract, prepare boxes for it, score with it."""

import shutil
import sysconfig
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

import anyio
import structlog
from anyio import to_thread

from orchestrator.service.environments.pythons import PythonEnvironments
from orchestrator.service.errors import BadRequest, NotFound
from orchestrator.service.records import ContractResult, FunctionResult
from orchestrator.service.sandbox.provider import Bind, BoxStartFailed
from orchestrator.service.scoring.contract import AstGrep, Checks, Function, PythonScript, read_contract
from orchestrator.service.scoring.scorers import AST_GREP, BrokenByTested, FindCustom, Place, Program, program_of
from orchestrator.service.scoring.verdict import Verdict, result_of, weigh


class Scoring:
    """The scorers of a service; `cache` is the folder for Python environments."""

    def __init__(self, *, cache: Path) -> None:
        self._pythons = PythonEnvironments(cache)

    def check(self, contract: Any, custom_types: Collection[str]) -> None:
        """Raises BadRequest naming each wrong key: fields, names, weights, types, Python constraints nobody meets.

        Blocks for some hundred milliseconds the first time that a constraint is not met by the service's own Python:
        call it in a worker thread.
        """
        read_contract(contract, Checks(custom_types=custom_types, python_problem=self._python_problem))

    async def binds(self, contract: Any) -> tuple[Bind, ...]:
        """What the box must have from its start: Python environments, built here if they are new, and ast-grep.

        Raises BoxStartFailed when an environment cannot be built, with pip's own words.
        """
        binds: dict[str, Bind] = {}
        for function in read_contract(contract):
            needed: tuple[Bind, ...] = ()
            if isinstance(function.scorer, PythonScript):
                needed = await self._pythons.binds(
                    requirements=function.scorer.requirements_contents,
                    constraint=function.scorer.python_version_constraint,
                )
            elif isinstance(function.scorer, AstGrep):
                needed = (Bind(source=await to_thread.run_sync(_ast_grep), target=AST_GREP),)
            binds |= {bind.target: bind for bind in needed}
        return tuple(binds.values())

    async def score(
        self, contract: Any, place: Place, *, timeout: float, custom: FindCustom, tests: Program | None = None
    ) -> ContractResult:
        """Run every function of the contract in its order and weigh the scores; `timeout` seconds are for all of them.

        `tests` is the program of the contract's one function where we know better than its script how to run it.
        A scorer at fault is a function in state `error`, never an exception. Raises
        BoxDied if the devbox ends meanwhile.
        """
        functions = read_contract(contract)
        deadline = anyio.current_time() + timeout

        async def program(function: Function) -> Program:
            if anyio.current_time() >= deadline:
                raise BadRequest("the time of the whole contract was used up before it could start")
            if tests is not None:
                return tests
            return await program_of(function.scorer, place=place, pythons=self._pythons, custom=custom)

        results = [await _score(function, program, place, deadline) for function in functions]
        return weigh([function.weight for function in functions], results)

    def _python_problem(self, constraint: str) -> str | None:
        try:
            found = self._pythons.interpreters.find(constraint)
        except ValueError as error:
            return str(error)
        if found is not None:
            return None
        installed = ", ".join(each.version for each in self._pythons.interpreters.installed())
        return f"no installed Python meets {constraint!r}; installed: {installed}"


async def _score(
    function: Function, find: Callable[[Function], Awaitable[Program]], place: Place, deadline: float
) -> FunctionResult:
    started = anyio.current_time()
    output, python = "", None
    try:
        program = await find(function)
        ended = await place.run(program, timeout=max(0.0, deadline - anyio.current_time()))
        verdict, output, python = program.judge(ended), ended.output, program.python
    except BrokenByTested as error:
        verdict, output = Verdict(broken=error.message), f"{error.message}\n"
    except (BadRequest, NotFound, BoxStartFailed) as error:
        verdict = Verdict(error=error.message)
    result = result_of(function.name, verdict, output=output, seconds=anyio.current_time() - started, python=python)
    about = {"state": result.state, "score": result.score, "seconds": result.seconds}
    structlog.get_logger().info("scorer.ended", devbox=place.id, scorer=function.name, **about)
    return result


def _ast_grep() -> Path:
    """The program of the package `ast-grep-cli`. Raises BoxStartFailed if it is not there."""
    from importlib.metadata import PackageNotFoundError, files  # slow to import, and few contracts search

    try:
        candidates = [
            Path(str(file.locate())).resolve() for file in files("ast-grep-cli") or () if file.stem == "ast-grep"
        ]
    except PackageNotFoundError:
        candidates = []
    candidates.append(Path(sysconfig.get_path("scripts")) / "ast-grep")
    if found := shutil.which("ast-grep"):
        candidates.append(Path(found))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise BoxStartFailed("The program ast-grep is not installed; install the package ast-grep-cli beside this one.")
