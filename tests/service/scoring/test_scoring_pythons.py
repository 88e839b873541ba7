"""Interpreters are found, and environments built once, whole, and fit to be bound anywhere."""

import platform
import sys
from pathlib import Path

import anyio
import pytest

from orchestrator.service.environments.pythons import Interpreters, PythonEnvironments
from orchestrator.service.errors import BadRequest
from orchestrator.service.sandbox.provider import BoxStartFailed
from orchestrator.service.scoring.scoring import Scoring

pytestmark = pytest.mark.anyio


async def said(program: Path, *arguments: str) -> str:
    return (await anyio.run_process([str(program), *arguments], cwd="/")).stdout.decode().strip()


@pytest.mark.parametrize("constraint", [None, "", ">=3.11", "<4,!=2.7"])
def test_the_services_own_interpreter_comes_first(constraint: str | None) -> None:
    found = Interpreters().find(constraint)
    assert found is not None
    assert found.version == platform.python_version()
    assert found.prefix == Path(sys.base_prefix)


def test_a_constraint_that_cannot_be_read_is_reported() -> None:
    with pytest.raises(ValueError, match=r"'3\.12' is not a version specifier"):
        Interpreters().find("3.12")


def test_a_python_version_that_is_not_installed_is_refused() -> None:
    assert Interpreters().find("==3.99.1") is None


async def test_other_interpreters_are_found_with_their_exact_version(other_python: str) -> None:
    found = Interpreters().find(f"=={other_python}")
    assert found is not None
    assert await said(found.program, "--version") == f"Python {other_python}"
    assert found.program.is_relative_to(found.prefix)


async def test_an_environment_is_built_once_even_for_many_at_a_time(tmp_path: Path) -> None:
    environments = PythonEnvironments(tmp_path)
    sources: list[Path] = []

    async def ask() -> None:
        (bind,) = await environments.binds(requirements=None, constraint=None)
        sources.append(bind.source)
        assert bind.target == f"/opt/sweep/python/{bind.source.parent.name}"

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask)
    assert len(set(sources)) == 1
    assert list((tmp_path / "python").iterdir()) == [sources[0].parent]
    assert {each.name for each in sources[0].parent.iterdir()} == {"files", "python.json"}, "nothing half built is left"


async def test_requirements_are_installed_and_work_wherever_the_folder_is(tmp_path: Path, wheels: Path) -> None:
    requirements = f"--no-index\n--find-links {wheels}\ntinyscore==1.0\n"
    (bind,) = await PythonEnvironments(tmp_path / "cache").binds(requirements=requirements, constraint=None)
    moved = tmp_path / ("elsewhere with a space " + "x" * 120)
    bind.source.rename(moved)
    code = "import tinyscore, sys; print(tinyscore.SCORE, sys.prefix)"
    assert await said(moved / "bin" / "python", "-I", "-c", code) == f"0.25 {moved}"
    assert await said(moved / "bin" / "tinyscore") == "0.25"


async def test_an_environment_does_not_see_the_packages_of_the_service(tmp_path: Path) -> None:
    (bind,) = await PythonEnvironments(tmp_path).binds(requirements=None, constraint=None)
    code = "import importlib.util; print(importlib.util.find_spec('anyio'))"
    assert await said(bind.source / "bin" / "python", "-I", "-c", code) == "None"


async def test_a_failing_installation_is_reported_in_pips_words_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BoxStartFailed, match=r"(?s)could not be filled.*no-such-package"):
        await PythonEnvironments(tmp_path).binds(requirements="--no-index\nno-such-package==1\n", constraint=None)
    assert not list((tmp_path / "python").iterdir())


async def test_a_source_distribution_is_not_built(tmp_path: Path) -> None:
    """Its build script would run outside the sandbox."""
    (tmp_path / "sdists").mkdir()
    (tmp_path / "sdists" / "tinyscore-1.0.tar.gz").write_bytes(b"")
    requirements = f"--no-index\n--find-links {tmp_path / 'sdists'}\ntinyscore\n"
    with pytest.raises(BoxStartFailed, match="tinyscore"):
        await PythonEnvironments(tmp_path).binds(requirements=requirements, constraint=None)


async def test_another_interpreter_is_bound_along_with_its_environment(tmp_path: Path, other_python: str) -> None:
    environments = PythonEnvironments(tmp_path)
    environment, *more = await environments.binds(requirements=None, constraint=f"=={other_python}")
    found = environments.interpreters.find(f"=={other_python}")
    assert found is not None
    assert [(bind.source, bind.target) for bind in more] in ([], [(found.prefix, str(found.prefix))])
    assert more or found.prefix.is_relative_to("/usr")
    assert await said(environment.source / "bin" / "python", "--version") == f"Python {other_python}"
    assert await environments.program(requirements=None, constraint=f"=={other_python}") == (
        f"{environment.target}/bin/python",
        other_python,
    )


def test_a_constraint_that_nobody_meets_is_refused_with_what_is_installed(scoring: Scoring) -> None:
    scorer = {"type": "python_script_scorer", "python_script": "print(1)", "python_version_constraint": "==3.99.1"}
    contract = {"scoring_function_parameters": [{"name": "f", "weight": 1, "scorer": scorer}]}
    with pytest.raises(BadRequest) as caught:
        scoring.check(contract, ())
    assert "[0].scorer.python_version_constraint: no installed Python meets '==3.99.1'; installed: " in str(
        caught.value
    )
    assert platform.python_version() in str(caught.value)


async def test_only_the_environments_a_contract_needs_are_bound(scoring: Scoring) -> None:
    search = {"type": "ast_grep_scorer", "pattern": "x", "search_directory": "."}
    functions = [{"name": name, "weight": 0.5, "scorer": search} for name in "ab"]
    (bind,) = await scoring.binds({"scoring_function_parameters": functions})
    assert bind.target == "/opt/sweep/ast-grep"
    assert "ast-grep" in await said(bind.source, "--version")
    shell = {"type": "command_scorer", "command": "true"}
    assert await scoring.binds({"scoring_function_parameters": [{"name": "f", "weight": 1, "scorer": shell}]}) == ()
