"""HumanEval and MBPP: a function to write in Python, and asserts for it.

The asserts run in the module of the solution, as both sets' own evaluations have it: some use functions of the prompt.
The reward is written by the last line of that program, so that a solution which ends it early gets nothing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orchestrator.service.definitions.importers.rows import read_rows
from orchestrator.service.definitions.importers.scenario_folder import ImportedScenario

_FILE: Final = "/app/solution.py"
_RUNNER: Final = f"""\
# Runs the solution and then the asserts, in one module.
import pathlib

REWARD = pathlib.Path("/logs/verifier/reward.txt")
texts = [pathlib.Path(name).read_text() for name in ("{_FILE}", "/tests/asserts.py")]
exec(compile("\\n\\n".join(texts), "{_FILE}", "exec"), {{"__name__": "solution"}})
REWARD.write_text("1\\n")
"""
_TEST: Final = "#!/bin/bash\necho 0 >/logs/verifier/reward.txt\npython3 /tests/run_asserts.py\n"
_SOLVE: Final = "#!/bin/bash\ncp /solution/solution.py /app/solution.py\n"


def read_humaneval(file: Path) -> Iterator[ImportedScenario]:
    """Read the published columns: task_id, prompt, entry_point, canonical_solution, test. Raises UsageError."""
    for row in read_rows(file):
        prompt, function = row.text("prompt"), row.text("entry_point")
        yield _scenario(
            row.text("task_id"),
            f"Complete the function `{function}` in {_FILE}. Its docstring says what it does. Keep its name and its "
            "parameters, and write nothing that runs when the file is imported.\n",
            asserts=f"{row.text('test')}\n\ncheck({function})\n",
            solution=prompt + row.text("canonical_solution"),
            stub=prompt,
        )


def read_mbpp(file: Path) -> Iterator[ImportedScenario]:
    """Read the published columns: task_id, text (or prompt), code, test_list and what the tests need before.

    Raises UsageError.
    """
    for row in read_rows(file):
        tests = row.texts("test_list")
        if not tests:
            raise row.mistake("test_list", "is missing; a list of asserts was expected")
        needed = row.text("test_setup_code", otherwise="\n".join(row.texts("test_imports")))
        shown = "\n".join(f"    {line}" for each in tests for line in each.splitlines())
        yield _scenario(
            f"mbpp-{row.text('task_id')}",
            f"{row.text('text', 'prompt')}\n\nWrite it in Python to {_FILE}. It must pass these asserts:\n\n{shown}\n",
            asserts="\n".join([needed, *tests, *row.texts("challenge_test_list"), ""]),
            solution=row.text("code"),
        )


def _scenario(name: str, statement: str, *, asserts: str, solution: str, stub: str = "") -> ImportedScenario:
    files: dict[str, str | Path] = {
        "tests/test.sh": _TEST,
        "tests/run_asserts.py": _RUNNER,
        "tests/asserts.py": asserts,
        "solution/solve.sh": _SOLVE,
        "solution/solution.py": solution if solution.endswith("\n") else f"{solution}\n",
    }
    if stub:
        files["environment/solution.py"] = stub
    return ImportedScenario(name=name, statement=statement, files=files, metadata={"language": "python"})
