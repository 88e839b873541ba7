"""Scoring: a contract is checked, boxes are prepared for it, and the program of each of its scorers is run and judged.

A `Place` decides on the box that a program runs in: the one that the agent left (`InPlace`), or a box of its own
(`settlements.Apart`). An agent had the box's files to itself before, so nothing that it could have left there decides
the start of a scorer. Programs are started by their arguments, never by a login shell; variables that make the loader,
a shell or Python read a file are empty; Python runs isolated (`-I`), with the working directory at the *end* of its
path: a script may import the agent's modules, which cannot pass for modules of the standard library or of the
requirements. Test files replace what stands in their place, links included, and the byte code beside them. PATH and
PYTHONPATH are as the scenario set them, because its tests may need them; our own steps, which put files in place, do
not use them. In a box of an image, whose programs its root can change, what starts is ours: bash, Python, ast-grep.

Of what a program prints, people get the first and last part, and we the end of stdout. Not by `commands.run`, which
keeps the beginning of each stream apart: a score is the last thing that a scorer prints, and a person wants to read
both streams in the order they came. Memory is bounded whatever is printed.

A pattern of ast-grep is one argument, without a shell. The documents say that it stands between double quotes on a
command line, so what must be escaped there may be escaped here, and means the same.
"""

import posixpath
import re
import shutil
import sysconfig
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, Protocol

import anyio
import orjson
import structlog
from anyio.abc import ByteReceiveStream
from anyio.to_thread import run_sync

from orchestrator.service.environments.pythons import PythonEnvironments
from orchestrator.service.errors import BadRequest, NotFound
from orchestrator.service.records import ContractResult, FunctionResult
from orchestrator.service.sandbox.commands import run, wait_attended, write_file
from orchestrator.service.sandbox.provider import Bind, Box, BoxDied, BoxStartFailed, Command
from orchestrator.service.scoring import contract as contracts
from orchestrator.service.scoring import verdict as verdicts

AST_GREP: Final = "/opt/sweep/ast-grep"
#: Variables of every scorer, whatever the scenario says.
EMPTIED: Final = dict.fromkeys(
    ("BASH_ENV", "CDPATH", "ENV", "LD_AUDIT", "LD_PRELOAD", "PYTHONHOME", "PYTHONSTARTUP"), ""
)
#: Runs the script named by the first argument as `__main__`, with the environment's programs first on the PATH.
_START: Final = """\
import os, sys
sys.argv = sys.argv[1:]
__file__ = sys.argv[0]
sys.path.append(os.getcwd())
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", os.defpath)
with open(__file__, "rb") as script:
    script = script.read()
del os, sys
exec(compile(script, __file__, "exec", dont_inherit=True))
"""
#: Limits of a step that takes milliseconds, and of the removal of what was put in place.
_STEP_LIMIT_S: Final = 120.0
_TIDY_LIMIT_S: Final = 10.0
#: Bytes of both streams that are shown, and of stdout that are searched for a score.
SHOWN_BYTES: Final = 64 * 1024
SEARCHED_BYTES: Final = 1024 * 1024

FindCustom = Callable[[str], Awaitable[str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The program of one scorer: `argv`, with the path of `script` behind it where it has one, among its `files`.

    `judge` says what its end means, with the files at the paths `reads`; `python` is the version that runs it.
    """

    argv: Sequence[str]
    script: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[contracts.TestFile] = ()
    reads: Sequence[str] = ()
    judge: Callable[[verdicts.Ended], verdicts.Verdict]
    python: str | None = None


class BrokenByTested(BoxDied):
    """The files that were judged broke the box that judged them; the message says how."""


class Place(Protocol):
    """A box, or boxes, in which the scorers of one contract run, one after the other."""

    @property
    def id(self) -> str:
        """The id of the devbox."""

    @property
    def tools(self) -> str | None:
        """See `Box.tools`."""

    def path(self, path: str) -> str:
        """Translate a path of the devbox to one of the box that scores."""

    async def run(self, program: Program, *, timeout: float) -> verdicts.Ended:
        """Run a program to its end, or end it after so many seconds.

        Raises BadRequest for what cannot be put there, BrokenByTested, and BoxDied.
        """

    async def stop(self) -> None:
        """End the devbox."""


class Scoring:
    """The scorers of a service; `cache` is the folder for Python environments."""

    def __init__(self, *, cache: Path) -> None:
        self._pythons = PythonEnvironments(cache)

    def check(self, contract: Any, custom_types: Collection[str]) -> None:
        """Raises BadRequest naming each wrong key: fields, names, weights, types, Python constraints nobody meets.

        Blocks for some hundred milliseconds the first time that a constraint is not met by the service's own Python:
        call it in a worker thread.
        """
        contracts.read_contract(
            contract, contracts.Checks(custom_types=custom_types, python_problem=self._pythons.interpreters.problem)
        )

    async def binds(self, contract: Any, *, is_image: bool = False) -> tuple[Bind, ...]:
        """Return what a box, of an image or not, must have from its start: Python environments, and ast-grep.

        Environments are built if new. Raises BoxStartFailed when one cannot be, with pip's own words.
        """
        binds: dict[str, Bind] = {}
        for function in contracts.read_contract(contract):
            needed: tuple[Bind, ...] = ()
            if isinstance(function.scorer, contracts.PythonScript):
                needed = await self._pythons.binds(
                    requirements=function.scorer.requirements_contents,
                    constraint=function.scorer.python_version_constraint,
                    is_image=is_image,
                )
            elif isinstance(function.scorer, contracts.AstGrep) and not is_image:
                needed = (Bind(source=await run_sync(_ast_grep), target=AST_GREP),)
            binds |= {bind.target: bind for bind in needed}
        return tuple(binds.values())

    async def score(
        self, contract: Any, place: Place, *, timeout: float, custom: FindCustom, tests: Program | None = None
    ) -> ContractResult:
        """Run every function of the contract in its order and weigh the scores; `timeout` seconds are for all of them.

        `tests` is the program of the contract's one function where we know better than its script how to run it.
        A scorer at fault is a function in state `error`, never an exception. Raises BoxDied if the devbox ends
        meanwhile.
        """
        functions = contracts.read_contract(contract)
        deadline = anyio.current_time() + timeout
        results: list[FunctionResult] = []

        async def program_for(scorer: contracts.Scorer) -> Program:
            if anyio.current_time() >= deadline:
                raise BadRequest("the time of the whole contract was used up before it could start")
            return tests or await program_of(scorer, place=place, pythons=self._pythons, custom=custom)

        for function in functions:
            started = anyio.current_time()
            output, python = "", None
            try:
                program = await program_for(function.scorer)
                ended = await place.run(program, timeout=max(0.0, deadline - anyio.current_time()))
                verdict, output, python = program.judge(ended), ended.output, program.python
            except BrokenByTested as error:
                verdict, output = verdicts.Verdict(broken=error.message), f"{error.message}\n"
            except (BadRequest, NotFound, BoxStartFailed) as error:
                verdict = verdicts.Verdict(error=error.message)
            seconds = anyio.current_time() - started
            result = verdicts.result_of(function.name, verdict, output=output, seconds=seconds, python=python)
            about = {"state": result.state, "score": result.score, "seconds": result.seconds}
            structlog.get_logger().info("scorer.ended", devbox=place.id, scorer=function.name, **about)
            results.append(result)
        return verdicts.weigh([function.weight for function in functions], results)


def bash(tools: str | None) -> tuple[str, ...]:
    """Return the words before a script's path that start bash without any file of a user's; `tools` are a box's."""
    return (f"{tools or '/bin'}/bash", "--noprofile", "--norc")


def _ast_grep() -> Path:
    """Return the program of the package `ast-grep-cli`. Raises BoxStartFailed if it is not there."""
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


async def program_of(
    scorer: contracts.Scorer,
    *,
    place: Place,
    pythons: PythonEnvironments,
    custom: FindCustom,
) -> Program:
    """Return the program of a scorer. Raises BadRequest and BoxStartFailed for one that there is not any more."""
    match scorer:
        case contracts.BashScript():
            return Program(argv=bash(place.tools), script=scorer.bash_script, judge=verdicts.judge_printed)
        case contracts.CommandScorer():
            return Program(argv=bash(place.tools), script=scorer.command, judge=verdicts.judge_status)
        case contracts.TestBased():
            return Program(
                argv=bash(place.tools),
                script=scorer.test_command,
                files=scorer.test_files or (),
                judge=verdicts.judge_status,
            )
        case contracts.Custom():
            script = await custom(scorer.custom_scorer_type)
            if script is None:
                raise BadRequest(f"no scorer of type {scorer.custom_scorer_type!r} is registered any more")
            params = {} if scorer.scorer_params is None else scorer.scorer_params
            variables = {"RL_SCORER_CONTEXT": orjson.dumps(params).decode()}
            return Program(argv=bash(place.tools), script=script, environment=variables, judge=verdicts.judge_printed)
        case contracts.PythonScript():
            program, version = await pythons.program(
                requirements=scorer.requirements_contents,
                constraint=scorer.python_version_constraint,
                is_image=place.tools is not None,
            )
            return Program(
                argv=(place.path(program), "-I", "-c", _START),
                script=scorer.python_script,
                judge=partial(verdicts.judge_printed, last_line_only=True),
                python=version,
            )
        case contracts.AstGrep():
            language = (f"--lang={scorer.lang}",) if scorer.lang else ()
            pattern = f"--pattern={unescape(scorer.pattern)}"
            # Without a configuration named here, the program reads the agent's sgconfig.yml; a broken one stops it.
            plain = ("--config", "/dev/null", "--color", "never", "--heading", "never")
            folder = place.path(scorer.search_directory)
            program = place.path(AST_GREP) if place.tools is None else f"{place.tools}/ast-grep"
            argv = (program, "run", *plain, pattern, *language, "--", folder)
            return Program(argv=argv, judge=verdicts.judge_matches)


class _Ends:
    """The first and the last bytes of a stream; what came between is counted."""

    def __init__(self, *, first: int, last: int) -> None:
        self._first, self._last = first, last
        self._head, self._tail = bytearray(), bytearray()
        self._lost = 0

    def add(self, chunk: bytes) -> None:
        room = self._first - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:]
        if len(self._tail) > 2 * self._last:  # seldom, so that a flood of small chunks is not moved each time
            self._trim()

    def _trim(self) -> None:
        excess = max(0, len(self._tail) - self._last)
        self._lost += excess
        del self._tail[:excess]

    def whole(self) -> str:
        """Return the bytes that were kept, with a line that says how many were left out."""
        self._trim()
        head, tail = (bytes(part).decode(errors="replace") for part in (self._head, self._tail))
        return f"{head}\n[{self._lost} bytes left out]\n{tail}" if self._lost else head + tail

    def end(self) -> str:
        """Return the last bytes, from the first whole line on if something was left out before them."""
        self._trim()
        text = bytes(self._tail).decode(errors="replace")
        return text.partition("\n")[2] if self._lost else text


async def watch(box: Box, command: Command, *, timeout: float) -> verdicts.Ended:
    """Run a command to its end, or kill it with all its descendants after `timeout` seconds. Raises BoxDied."""
    shown, stdout = _Ends(first=SHOWN_BYTES // 2, last=SHOWN_BYTES // 2), _Ends(first=0, last=SEARCHED_BYTES)
    process = await box.spawn(command)
    status: int | None = None

    async def collect(stream: ByteReceiveStream, *kept: _Ends) -> None:
        async for chunk in stream:
            for each in kept:
                each.add(chunk)

    with anyio.move_on_after(timeout):
        status = await wait_attended(
            process, lambda: collect(process.stdout, shown, stdout), lambda: collect(process.stderr, shown)
        )
    return verdicts.Ended(status=status, limit=timeout, stdout=stdout.end(), output=shown.whole())


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlace:
    """The agent's box as it is. A script comes in a private folder that did not exist before, and is removed after.

    What the agent left running is the same user as a scorer: one that means to can change a scorer's files and trace
    its programs while it runs. Nothing here prevents that, and results say so. Scorers have the `variables` too.
    """

    box: Box
    working_directory: str
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.box.id

    @property
    def tools(self) -> str | None:
        return self.box.tools

    def path(self, path: str) -> str:
        return self.box.path(path)

    async def stop(self) -> None:
        await self.box.stop()

    async def run(self, program: Program, *, timeout: float) -> verdicts.Ended:
        deadline, step = anyio.current_time() + timeout, min(timeout, _STEP_LIMIT_S)
        targets = [posixpath.join(self.working_directory, file.file_path) for file in program.files]
        # A link or a folder in the way would redirect or refuse the file; planted byte code would run instead of it.
        compiled = {posixpath.join(posixpath.dirname(target), "__pycache__") for target in targets}
        if targets:
            await self._clear([*targets, *sorted(compiled)], timeout=step)
        for target, file in zip(targets, program.files, strict=True):
            contents = file.file_contents or ""
            await write_file(self.box, target, contents.encode(), mode=mode_of(contents), timeout=step)

        if program.script is None:
            return await self._watch(program, program.argv, deadline)
        folder = f"/tmp/.scorer-{token_hex(8)}"  # noqa: S108 - of the devbox, by a name that nobody can foresee
        try:
            await write_file(self.box, f"{folder}/script", program.script.encode(), timeout=step)
            return await self._watch(program, (*program.argv, self.box.path(f"{folder}/script")), deadline)
        finally:
            with anyio.move_on_after(_TIDY_LIMIT_S, shield=True), suppress(BoxDied):
                await self._clear([folder], timeout=_TIDY_LIMIT_S)

    async def _watch(self, program: Program, argv: Sequence[str], deadline: float) -> verdicts.Ended:
        environment = {**self.variables, **EMPTIED, **program.environment}
        command = Command(argv=tuple(argv), cwd=self.working_directory, environment=environment)
        return await watch(self.box, command, timeout=max(0.0, deadline - anyio.current_time()))

    async def _clear(self, paths: Sequence[str], *, timeout: float) -> None:
        command = Command(argv=("rm", "-rf", "--", *map(self.box.path, paths)), is_plain=True)
        await run(self.box, command, timeout=timeout)


def mode_of(contents: str) -> int:
    """Return the mode of a test file: a script that says what runs it can be executed."""
    return 0o755 if contents.startswith("#!") else 0o644


def unescape(pattern: str) -> str:
    r"""Undo the escapes of a pattern between double quotes: `\$`, `\"`, `` \` `` and `\\` lose a backslash."""
    return re.sub(r'\\([$"`\\])', r"\1", pattern)
