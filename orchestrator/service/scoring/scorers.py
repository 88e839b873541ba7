"""The six kinds of scorers, each run in the devbox after the agent: what its program is, and how its end is judged.

The agent had the box to itself before, so nothing it could have left there decides how a scorer starts. Programs are
started by their arguments, never by a login shell; a script comes in a private folder that did not exist before and is
removed after; variables that make the loader, a shell or Python read a file are empty; Python runs isolated (`-I`),
with the working directory at the *end* of its path: a script may import the agent's modules, which cannot pass for
modules of the standard library or of the requirements. Test files replace what stands in their place, links included,
and the byte code beside them. PATH and PYTHONPATH are as the scenario set them, because its tests may need them; our
own steps, which put files in place, do not use them.

Processes that the agent left live on, because tests may need its servers. They are the same user as a scorer, so one
that means to can change a scorer's files and trace its programs while it runs; nothing here prevents that.

A pattern of ast-grep is one argument, without a shell. The documents say that it stands between double quotes on a
command line, so what must be escaped there may be escaped here, and means the same.
"""

import posixpath
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final

import anyio
import orjson

from orchestrator.errors import BadRequest
from orchestrator.service.devboxes.commands import run, write_file
from orchestrator.service.devboxes.contract import Box, BoxDied, Command
from orchestrator.service.scoring.contract import (
    AstGrep,
    BashScript,
    CommandScorer,
    Custom,
    PythonScript,
    TestBased,
    TestFile,
)
from orchestrator.service.scoring.output import watch
from orchestrator.service.scoring.pythons import PythonEnvironments
from orchestrator.service.scoring.verdict import Ended, Verdict, judge_matches, judge_printed, judge_status

AST_GREP: Final = "/opt/sweep/ast-grep"
_EMPTIED: Final = dict.fromkeys(
    ("BASH_ENV", "CDPATH", "ENV", "LD_AUDIT", "LD_PRELOAD", "PYTHONHOME", "PYTHONSTARTUP"), ""
)
_BASH: Final = ("/bin/bash", "--noprofile", "--norc")
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
_TIDY_TIMEOUT: Final = 10.0

FindCustom = Callable[[str], Awaitable[str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What became of one scorer: the verdict, what it printed, and further facts for its result."""

    verdict: Verdict
    output: str = ""
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A devbox in which the scorers of one contract run, one after the other, until `deadline` on the loop's clock."""

    box: Box
    working_directory: str
    deadline: float
    pythons: PythonEnvironments
    custom: FindCustom

    @property
    def left(self) -> float:
        """Seconds that are left for this scorer and those after it."""
        return max(0.0, self.deadline - anyio.current_time())

    async def score(self, scorer: BashScript | PythonScript | CommandScorer | TestBased | Custom | AstGrep) -> Scored:
        """Run one scorer. Raises BadRequest for what cannot be put into the devbox, and BoxDied."""
        if self.left <= 0:
            raise BadRequest("the time of the whole contract was used up before it could start")
        match scorer:
            case BashScript():
                return _scored(judge_printed, await self._bash(scorer.bash_script))
            case CommandScorer():
                return _scored(judge_status, await self._bash(scorer.command))
            case TestBased():
                await self._place(scorer.test_files or [])
                return _scored(judge_status, await self._bash(scorer.test_command))
            case Custom():
                return await self._custom(scorer)
            case PythonScript():
                return await self._python(scorer)
            case AstGrep():
                return _scored(judge_matches, await self._run(self._search(scorer)))

    async def _custom(self, scorer: Custom) -> Scored:
        script = await self.custom(scorer.custom_scorer_type)
        if script is None:
            reason = f"no scorer of type {scorer.custom_scorer_type!r} is registered any more"
            return Scored(verdict=Verdict(error=reason), facts={})
        params = {} if scorer.scorer_params is None else scorer.scorer_params
        return _scored(judge_printed, await self._bash(script, {"RL_SCORER_CONTEXT": orjson.dumps(params).decode()}))

    async def _python(self, scorer: PythonScript) -> Scored:
        program, version = await self.pythons.program(scorer)
        argv = (self.box.path(program), "-I", "-c", _START)
        ended = await self._run_script(argv, scorer.python_script)
        return Scored(verdict=judge_printed(ended, last_line_only=True), output=ended.output, facts={"python": version})

    def _search(self, scorer: AstGrep) -> Sequence[str]:
        language = (f"--lang={scorer.lang}",) if scorer.lang else ()
        pattern = f"--pattern={unescape(scorer.pattern)}"
        # Without a configuration named here, the program reads the agent's sgconfig.yml, and stops over a broken one.
        plain = ("--config", "/dev/null", "--color", "never", "--heading", "never")
        where = self.box.path(scorer.search_directory)
        return (self.box.path(AST_GREP), "run", *plain, pattern, *language, "--", where)

    async def _bash(self, script: str, environment: Mapping[str, str] | None = None) -> Ended:
        return await self._run_script(_BASH, script, environment)

    async def _run_script(
        self, argv: Sequence[str], script: str, environment: Mapping[str, str] | None = None
    ) -> Ended:
        folder = f"/tmp/.scorer-{token_hex(8)}"  # noqa: S108 - of the devbox, by a name that nobody can foresee
        try:
            await write_file(self.box, f"{folder}/script", script.encode(), timeout=self._moment())
            return await self._run((*argv, self.box.path(f"{folder}/script")), environment)
        finally:
            await self._remove(folder)

    async def _run(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Ended:
        command = Command(argv=tuple(argv), cwd=self.working_directory, environment={**_EMPTIED, **(environment or {})})
        return await watch(self.box, command, timeout=self.left)

    async def _place(self, files: Sequence[TestFile]) -> None:
        targets = [posixpath.join(self.working_directory, file.file_path) for file in files]
        # A link or a folder in the way would redirect or refuse the file; planted byte code would run instead of it.
        compiled = {posixpath.join(posixpath.dirname(target), "__pycache__") for target in targets}
        if targets:
            clear = ("rm", "-rf", "--", *map(self.box.path, (*targets, *sorted(compiled))))
            await run(self.box, Command(argv=clear, is_plain=True), timeout=self._moment())
        for target, file in zip(targets, files, strict=True):
            contents = file.file_contents or ""
            mode = 0o755 if contents.startswith("#!") else 0o644
            await write_file(self.box, target, contents.encode(), mode=mode, timeout=self._moment())

    async def _remove(self, folder: str) -> None:
        with anyio.move_on_after(_TIDY_TIMEOUT, shield=True):
            try:
                clear = ("rm", "-rf", "--", self.box.path(folder))
                await run(self.box, Command(argv=clear, is_plain=True), timeout=_TIDY_TIMEOUT)
            except BoxDied:
                return  # and the folder with it

    def _moment(self) -> float:
        """Seconds for a step that takes milliseconds."""
        return min(self.left, 120.0)


def _scored(judge: Callable[[Ended], Verdict], ended: Ended) -> Scored:
    return Scored(verdict=judge(ended), output=ended.output, facts={})


def unescape(pattern: str) -> str:
    r"""A pattern as it reaches a program from between double quotes: `\$`, `\"`, `` \` `` and `\\` lose a backslash."""
    return re.sub(r'\\([$"`\\])', r"\1", pattern)
