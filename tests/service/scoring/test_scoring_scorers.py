"""The six scorers, in real boxes of every provider that this machine permits."""

import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from orchestrator.service.records import FunctionResult
from orchestrator.service.sandbox.commands import run, write_file
from orchestrator.service.sandbox.provider import Box, BoxDied, BoxStartFailed, Capability, ImageRoot, Provider, shell
from orchestrator.service.scoring.scoring import InPlace, Scoring
from orchestrator.service.store import Document

Boot = Callable[..., Awaitable[Box]]
Score = Callable[..., Awaitable[FunctionResult]]
pytestmark = pytest.mark.anyio

APP = "/app"


async def no_custom(_: str) -> str | None:
    return None


def contract_of(*scorers: Document, weights: tuple[float, ...] = (1.0,)) -> Document:
    return {
        "scoring_function_parameters": [
            {"name": f"f{index}", "weight": weight, "scorer": scorer}
            for index, (scorer, weight) in enumerate(zip(scorers, weights, strict=True))
        ]
    }


def bash(script: str) -> Document:
    return {"type": "bash_script_scorer", "bash_script": script}


def python(script: str, **more: str) -> Document:
    return {"type": "python_script_scorer", "python_script": script, **more}


def command(text: str) -> Document:
    return {"type": "command_scorer", "command": text}


def hidden_tests(text: str, files: dict[str, str] | None = None) -> Document:
    listed = [{"file_path": path, "file_contents": contents} for path, contents in (files or {}).items()]
    return {"type": "test_based_scorer", "test_command": text, "test_files": listed}


def ast_grep(pattern: str, *, where: str = ".", lang: str | None = "python") -> Document:
    return {"type": "ast_grep_scorer", "pattern": pattern, "search_directory": where, "lang": lang}


async def test_a_bash_script_is_scored_by_what_it_prints(score: Score) -> None:
    result = await score(bash('echo "in $PWD" >&2\nprintf "score=0.2\\nscore=0.75\\nbye\\n"'))
    assert (result.score, result.state) == (0.75, "complete")
    assert result.seconds is not None
    assert result.seconds > 0
    assert "score=0.75" in result.output
    assert "in " in result.output, "standard error is shown too"


async def test_a_score_before_a_failure_is_an_error(score: Score) -> None:
    result = await score(bash("echo score=1.0; exit 3"))
    assert (result.score, result.state) == (0.0, "error")
    assert result.output == "score=1.0\nscorer f: it ended with exit status 3; a score counts only with exit status 0\n"


async def test_a_script_longer_than_an_argument_can_be_runs(score: Score) -> None:
    assert (await score(bash(f"# {'x' * 300_000}\necho score=1.0"))).score == 1.0


async def test_a_flood_of_output_is_cut_in_the_middle_and_the_score_at_its_end_counts(score: Score) -> None:
    result = await score(bash("echo first; head -c 3000000 /dev/zero | tr '\\0' 'x'; echo; echo score=0.5"))
    assert result.score == 0.5
    assert result.output.startswith("first\n")
    assert result.output.endswith("\nscore=0.5\n")
    assert "bytes left out]" in result.output
    assert len(result.output) < 70_000


async def test_output_that_is_no_text_is_shown_all_the_same(score: Score) -> None:
    result = await score(bash("printf '\\377\\376\\nscore=1.0\\n'"))
    assert result.score == 1.0
    assert result.output.startswith("��")


async def test_a_hanging_scorer_is_killed_with_all_it_started(boot: Boot, scoring: Scoring, provider: Provider) -> None:
    """And the functions after it have no time left: the timeout is for the whole contract."""
    second = f"98765.{uuid.uuid4().int % 10**9}"
    hang = bash(f"echo working; sleep {second} & (setsid sleep {second} &) ; sleep {second}; echo score=1.0")
    contract = contract_of(hang, command("true"), weights=(0.5, 0.5))
    box = await boot(contract)
    result = await scoring.score(contract, InPlace(box=box, working_directory=APP), timeout=1.0, custom=no_custom)
    hung, late = result.scoring_function_results
    assert result.score == 0.0
    assert [hung.state, late.state] == ["error", "error"]
    assert hung.output.startswith("working\nscorer f0: it ran out of time after")
    assert "used up before it could start" in late.output
    assert 0.9 <= (hung.seconds or 0) < 10
    if Capability.TREE_KILL in provider.capabilities:
        seen = await run(
            box,
            shell(f"cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep {second[:9]}[{second[9]}]'"),
            timeout=30,
        )
        assert seen.stdout.strip() == b"0", seen.output


async def test_a_python_script_prints_a_bare_number(score: Score) -> None:
    result = await score(
        python("from __future__ import annotations\nimport sys\nprint('log')\nprint(sum([0.25, 0.25]))")
    )
    assert (result.score, result.state) == (0.5, "complete")
    assert (result.python or "").startswith("3.")


async def test_a_python_script_is_a_main_program_like_any_other(score: Score) -> None:
    script = (
        "import sys\nassert __name__ == '__main__' and sys.argv == [__file__]\nassert 'os' not in globals()\nprint(1)"
    )
    result = await score(python(script))
    assert result.score == 1.0, result.output


async def test_a_python_script_that_raises_is_an_error_with_its_traceback(score: Score) -> None:
    result = await score(python("print(1.0)\nraise RuntimeError('broken ' + 'scorer')"))
    assert result.state == "error"
    assert "RuntimeError: broken scorer" in result.output
    assert "ended with exit status 1" in result.output


async def test_modules_the_agent_planted_do_not_replace_those_of_a_python_script(score: Score) -> None:
    """Not from the working directory, the home, or variables; but the agent's own modules can be imported."""
    plant = """
        for name in json sitecustomize usercustomize statistics; do echo "raise SystemExit('planted')" > $name.py; done
        site=$HOME/.local/lib/python3.11/site-packages; mkdir -p $site; echo "import os; os._exit(0)" > $site/evil.pth
        echo "ANSWER = 42" > solution.py
    """
    script = "import json, statistics, solution\nprint(1.0 if solution.ANSWER == json.loads('42') else 0.0)"
    result = await score(python(script), agent=plant, PYTHONPATH=".", PYTHONSTARTUP="json.py")
    assert result.output == "1.0\n"
    assert result.score == 1.0


async def test_dotfiles_of_the_agent_and_variables_that_name_its_files_do_nothing(score: Score) -> None:
    plant = """
        for name in .bashrc .bash_profile .profile .bash_login .env; do echo 'echo score=1.0; exit 0' > ~/$name; done
        echo 'case $0 in *scorer*) echo score=1.0; exit 0;; esac' > planted.sh
    """
    for scorer in (bash("echo score=0.0"), command("false"), hidden_tests("false")):
        result = await score(scorer, agent=plant, BASH_ENV="planted.sh", ENV="planted.sh")
        assert (result.score, result.state) == (0.0, "complete"), result.output


async def test_requirements_of_a_python_script_are_there_for_it_and_for_programs_it_starts(
    score: Score, wheels: Path
) -> None:
    script = (
        "import subprocess, sys, tinyscore\n"
        "for argv in ([sys.executable, '-I', '-m', 'tinyscore'], ['tinyscore']):\n"
        "    print(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip())\n"
        "print(tinyscore.SCORE)\n"
    )
    requirements = f"--no-index\n--find-links {wheels}\ntinyscore\n"
    result = await score(python(script, requirements_contents=requirements), agent="echo 'SCORE = 1.0' > tinyscore.py")
    assert result.output.split() == ["0.25", "0.25", "0.25"]
    assert result.score == 0.25


async def test_a_python_script_runs_with_the_version_it_asks_for(
    score: Score, other_python: str, root: ImageRoot | None
) -> None:
    script = "import platform\nprint(platform.python_version())\nprint(1)"
    scorer = python(script, python_version_constraint=f"=={other_python}")
    if root is not None:
        with pytest.raises(BoxStartFailed, match=rf"image a scorer's Python is this service's.*'=={other_python}'"):
            await score(scorer)
        return
    result = await score(scorer)
    assert result.score == 1.0, result.output
    assert result.python == other_python
    assert result.output.startswith(other_python)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("test -w .", (1.0, "complete")), ("echo why; exit 1", (0.0, "complete")), ("no-such-program", (0.0, "error"))],
)
async def test_a_command_passes_by_its_exit_status(score: Score, text: str, expected: tuple[float, str]) -> None:
    result = await score(command(text))
    assert (result.score, result.state) == expected, result.output


async def test_a_command_that_a_signal_ended_is_an_error(score: Score) -> None:
    result = await score(command("kill -SEGV $$"))
    assert result.state == "error"
    assert "killed by SIGSEGV" in result.output


async def test_test_files_arrive_when_it_is_time_to_score(score: Score) -> None:
    result = await score(
        hidden_tests("./deep/run.sh && cat deep/data.txt", {"deep/run.sh": "#!/bin/sh\n", "deep/data.txt": "é\n"}),
        agent="test ! -e deep",
    )
    assert (result.score, result.output) == (1.0, "é\n")


async def test_files_the_agent_put_in_place_of_test_files_are_replaced(score: Score) -> None:
    """A link to nowhere, a folder, and byte code that Python would take for that of the test."""
    plant = """
        ln -s /dev/null test_link.py; mkdir -p test_folder.py/x; echo 'pass' > test_code.py
        python3 -m compileall -q --invalidation-mode unchecked-hash test_code.py && rm test_code.py && ls __pycache__
    """
    failing = "raise SystemExit(1)\n"
    for name in ("test_link.py", "test_folder.py", "test_code.py"):
        module = name.removesuffix(".py")
        result = await score(hidden_tests(f"python3 -c 'import {module}'", {name: failing}), agent=plant)
        assert (result.score, result.state) == (0.0, "complete"), result.output


async def test_a_custom_scorer_reads_its_parameters(score: Score) -> None:
    script = 'printf "%s\\n" "$RL_SCORER_CONTEXT"; echo score=0.5'
    params = {"cases": ["a b", "it's", '"', "$HOME", "é"], "deep": {"n": 1.5}}
    result = await score({"type": "custom_scorer", "custom_scorer_type": "t", "scorer_params": params}, custom=script)
    assert result.score == 0.5
    assert result.output.splitlines()[0] == '{"cases":["a b","it\'s","\\"","$HOME","é"],"deep":{"n":1.5}}'


async def test_a_custom_scorer_that_is_gone_is_an_error(score: Score) -> None:
    result = await score({"type": "custom_scorer", "custom_scorer_type": "t"}, custom=None)
    assert result.state == "error"
    assert "no scorer of type 't' is registered any more" in result.output


@pytest.mark.parametrize(
    ("scorer", "expected"),
    [
        (ast_grep("closing($X)"), (1.0, "complete")),
        (ast_grep("closing($X)", lang=None), (1.0, "complete")),
        (ast_grep(r"closing(\$X)"), (1.0, "complete")),
        (ast_grep("""print("it's  here", -1)"""), (1.0, "complete")),
        (ast_grep("-y", where="-z"), (1.0, "complete")),
        (ast_grep("closing($X)", where=f"{APP}/sub"), (0.0, "complete")),
        (ast_grep("opening($X)"), (0.0, "complete")),
        (ast_grep("closing($X)", where="nowhere"), (0.0, "complete")),
        (ast_grep("closing($X)", lang="klingon"), (0.0, "error")),
        (ast_grep("closing("), (0.0, "error")),
        (ast_grep("a; b"), (0.0, "error")),
    ],
)
async def test_a_search_passes_when_the_pattern_is_found(
    score: Score, scorer: Document, expected: tuple[float, str]
) -> None:
    """And a broken configuration that the agent planted changes nothing."""
    plant = """
        printf 'with closing(f) as g:\\n    print("it'"'"'s  here", -1)\\n' > a.py
        mkdir ./-z sub; echo 'x = -y' > ./-z/b.py; echo 'foo: [bar' > sgconfig.yml
    """
    result = await score(scorer, agent=plant)
    assert (result.score, result.state) == expected, result.output


async def test_functions_run_in_their_order_and_each_counts_by_its_weight(boot: Boot, scoring: Scoring) -> None:
    contract = contract_of(
        bash("echo one > order; echo score=1"),
        command("echo two >> order; exit 1"),
        python("print(open('order').read().split() == ['one', 'two'] and 0.5)"),
        bash("echo oops"),
        weights=(0.4, 0.3, 0.2, 0.1),
    )
    box = await boot(contract)
    result = await scoring.score(contract, InPlace(box=box, working_directory=APP), timeout=30, custom=no_custom)
    functions = result.scoring_function_results
    assert [each.scoring_function_name for each in functions] == ["f0", "f1", "f2", "f3"]
    assert [each.score for each in functions] == [1.0, 0.0, 0.5, 0.0]
    assert [each.state for each in functions] == ["complete", "complete", "complete", "error"]
    assert result.score == 0.5
    assert result.faults()


async def test_a_box_that_dies_while_a_scorer_runs_is_reported(boot: Boot, scoring: Scoring) -> None:
    contract = contract_of(bash("touch started; sleep 1000"))
    box = await boot(contract)
    outcome: list[object] = []

    async def work() -> None:
        try:
            outcome.append(
                await scoring.score(contract, InPlace(box=box, working_directory=APP), timeout=60, custom=no_custom)
            )
        except BoxDied as error:
            outcome.append(error)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await run(box, shell("until test -e started; do sleep 0.05; done"), timeout=20)
            await box.stop()
    assert isinstance(outcome[0], BoxDied)


async def test_a_test_file_that_cannot_be_written_is_an_error_with_the_boxs_words(boot: Boot, scoring: Scoring) -> None:
    contract = contract_of(hidden_tests("true", {"blocked/test.py": ""}))
    box = await boot(contract)
    await write_file(box, f"{APP}/blocked", b"a file where a folder is wanted")
    result = await scoring.score(contract, InPlace(box=box, working_directory=APP), timeout=30, custom=no_custom)
    (only,) = result.scoring_function_results
    assert only.state == "error"
    assert "blocked/test.py: cannot be written" in only.output
