"""A contract is refused as a whole, with every wrong key named, or it is good."""

from typing import Any

import pytest

from orchestrator.service.environments.pythons import check_requirements
from orchestrator.service.errors import BadRequest
from orchestrator.service.scoring.contract import Checks, ContractMistaken, read_contract

CHECKS = Checks(custom_types=("partial-cases",), python_problem=lambda text: "nobody has it" if "9" in text else None)


def function(name: object = "f", weight: object = 1.0, **scorer: object) -> dict[str, object]:
    return {"name": name, "weight": weight, "scorer": {"type": "command_scorer", "command": "true", **scorer}}


def contract(*functions: dict[str, object]) -> dict[str, Any]:
    return {"scoring_function_parameters": list(functions)}


def mistakes(document: Any) -> list[str]:
    with pytest.raises(ContractMistaken) as caught:
        read_contract(document, CHECKS)
    return caught.value.mistakes


@pytest.mark.parametrize(
    "scorer",
    [
        {"type": "bash_script_scorer", "bash_script": "echo score=1.0"},
        {"type": "python_script_scorer", "python_script": "print(1.0)"},
        {
            "type": "python_script_scorer",
            "python_script": "print(1.0)",
            "requirements_contents": None,
            "python_version_constraint": "",
        },
        {"type": "command_scorer", "command": "true"},
        {"type": "test_based_scorer", "test_command": "true"},
        {
            "type": "test_based_scorer",
            "test_command": "t",
            "test_files": [{"file_path": "a/b.py", "file_contents": ""}],
        },
        {"type": "custom_scorer", "custom_scorer_type": "partial-cases"},
        {"type": "custom_scorer", "custom_scorer_type": "partial-cases", "scorer_params": {"cases": ["a", 1, None]}},
        {"type": "ast_grep_scorer", "pattern": "f($X)", "search_directory": "."},
        {"type": "ast_grep_scorer", "pattern": "f($X)", "search_directory": "/app", "lang": "python"},
    ],
)
def test_every_kind_of_scorer_of_the_client_is_read(scorer: dict[str, object]) -> None:
    (read,) = read_contract(contract(function(**scorer)), CHECKS)
    assert read.scorer.type == scorer["type"]


def test_all_mistakes_come_at_once_with_the_key_the_client_wrote() -> None:
    found = mistakes(
        contract(
            function("a b", 0.5),
            function("b", -1, type="bash_script_scorer"),
            function("c", 0.25, type="guess_scorer"),
            function("c", 0.25, type="custom_scorer", custom_scorer_type="nope"),
            function("d", 0.25, type="python_script_scorer", python_script="", python_version_constraint="==9.1"),
        )
    )
    prefix = "scoring_contract.scoring_function_parameters"
    keys = [each.partition(": ")[0].removeprefix(prefix) for each in found]
    assert keys == [
        "[0].name",
        "[1].weight",
        "[1].scorer.bash_script",
        "[2].scorer.type",
        "[3].scorer.custom_scorer_type",
        "[4].scorer.python_script",
        "[4].scorer.python_version_constraint",
        "",
        "",
    ]
    text = "\n".join(found)
    assert "got 'a b'" in text
    assert "'guess_scorer' is no type of scorer; expected one of ast_grep_scorer, bash_script_scorer" in text
    assert "no scorer of type 'nope' is registered (registered: partial-cases)" in text
    assert "nobody has it" in text
    assert "'c' is used by [2], [3]" in text
    assert "the weights must sum to 1, they sum to 0.25" in text


def test_a_mistake_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match=r"scoring_function_parameters\[0\]\.weight: Input should be greater than 0"):
        read_contract(contract(function(weight=0)))


@pytest.mark.parametrize("document", [None, [], "x", {}, {"scoring_function_parameters": []}, {"a": 1}])
def test_a_contract_without_functions_is_refused(document: object) -> None:
    assert mistakes(document)[0].startswith("scoring_contract")


@pytest.mark.parametrize("weight", ["1.0", True, None, float("nan"), float("inf"), 0, -1.0])
def test_a_weight_is_a_positive_number(weight: object) -> None:
    assert mistakes(contract(function(weight=weight)))[0].startswith(
        "scoring_contract.scoring_function_parameters[0].weight: "
    )


@pytest.mark.parametrize("weights", [(0.5, 0.4), (0.7, 0.7), (0.5, 0.50001)])
def test_weights_that_do_not_sum_to_one_are_refused(weights: tuple[float, ...]) -> None:
    (mistake,) = mistakes(contract(*(function(f"f{i}", weight) for i, weight in enumerate(weights))))
    assert mistake.startswith("scoring_contract.scoring_function_parameters: the weights must sum to 1, they sum to ")


@pytest.mark.parametrize("weights", [(1,), (0.7, 0.2, 0.1), (0.333333, 0.333333, 0.333334), (1 / 3, 1 / 3, 1 / 3)])
def test_weights_that_sum_to_one_up_to_rounding_are_good(weights: tuple[float, ...]) -> None:
    read_contract(contract(*(function(f"f{i}", weight) for i, weight in enumerate(weights))))


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.py", "a/../../x", "", ".", "tests/", "a\0b"])
def test_a_test_file_outside_the_working_directory_is_refused(path: str) -> None:
    scorer = {"type": "test_based_scorer", "test_command": "true", "test_files": [{"file_path": path}]}
    (mistake,) = mistakes(contract(function(**scorer)))
    assert mistake.startswith("scoring_contract.scoring_function_parameters[0].scorer.test_files[0].file_path: ")


def test_parameters_that_no_environment_variable_holds_are_refused() -> None:
    scorer = {"type": "custom_scorer", "custom_scorer_type": "partial-cases", "scorer_params": "x" * 130_000}
    (mistake,) = mistakes(contract(function(**scorer)))
    assert ".scorer.scorer_params: must be at most" in mistake


@pytest.mark.parametrize(
    "contents",
    [
        "",
        "# only a comment\n\n",
        "requests\nattrs>=23 # why\n--no-index\n--find-links /some/where\n",
        "attrs==23.1.0 \\\n    --hash=sha256:abc\n",
        "wheel @ file:///somewhere/wheel-1-py3-none-any.whl",
        "./local-1.0-py3-none-any.whl",
        "numpy; python_version >= '3.11'",
    ],
)
def test_requirements_by_name_or_as_wheels_are_installed(contents: str) -> None:
    check_requirements(contents)


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        ("attrs\n-e .\n", "line 2: the option -e is not allowed"),
        ("-r /etc/passwd", "line 1: the option -r is not allowed"),
        ("--no-binary=:all:", "line 1: the option --no-binary is not allowed"),
        ("attrs --config-settings=x", "line 1: the option --config-settings=x is not allowed"),
        ("git+ssh://example.org/repo.git", "only wheels are installed"),
        ("x @ git+ssh://example.org/repo.git", "is not a wheel"),
        ("./folder", "only wheels are installed"),
        ("x @ file:///x.tar.gz", "is not a wheel"),
        ("attrs\n\nx @ file:///${HOME}/x.whl", "line 3: variables of the service's environment"),
        ("attrs \\\n  --global-option=x\nfoo bar", "line 1: the option --global-option=x"),
    ],
)
def test_requirements_that_would_run_code_outside_the_sandbox_are_refused(contents: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r"^line \d+: ") as caught:
        check_requirements(contents)
    assert problem in str(caught.value)
