"""A score is what a scorer said and meant; everything else is an error that says why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.service.records import FunctionResult, view
from orchestrator.service.scoring.verdict import (
    Ended,
    Verdict,
    judge_matches,
    judge_printed,
    judge_status,
    result_of,
    weigh,
)


def ended(stdout: str = "", status: int | None = 0) -> Ended:
    return Ended(status=status, limit=5.0, stdout=stdout, output=stdout)


def result(score: float, error: str | None = None) -> FunctionResult:
    return result_of("f", Verdict(score=score, error=error), output="", seconds=0.1)


@pytest.mark.parametrize(
    ("stdout", "score"),
    [
        ("score=1.0\n", 1.0),
        ("  score= 0.25 \r\n", 0.25),
        ("score=.5", 0.5),
        ("score=1", 1.0),
        ("score=5e-1\nbye\n", 0.5),
        ("score=0.1\nmore\nscore=0.9\nthe end\n", 0.9),
        ("my score=0.3 is a remark\nscore=0.4\n", 0.4),
        ("score=-0.0", 0.0),
        ("3 passed\n0.75\n\n", 0.75),
    ],
)
def test_the_last_score_line_counts_and_without_one_a_bare_last_line(stdout: str, score: float) -> None:
    assert judge_printed(ended(stdout)) == Verdict(score=score)


@pytest.mark.parametrize(
    "stdout",
    [
        "score=1.7",
        "score=-0.1",
        "score=nan",
        "score=inf",
        "score=abc",
        "score=",
        "score=0.5\nscore=oops",
        "score=0.5/1",
        "score=1_0e-1",
        "done",
        "1.7",
        "",
        "\n\n",
    ],
)
def test_output_without_a_number_from_0_to_1_is_an_error(stdout: str) -> None:
    verdict = judge_printed(ended(stdout))
    assert verdict.score == 0
    assert verdict.error is not None
    assert "no score" in verdict.error


@pytest.mark.parametrize(
    ("stdout", "score"), [("0.5\n", 0.5), ("score=0.1\n0.5\n\n", 0.5), ("0.9\nscore=0.5", 0.5), ("log\n1", 1.0)]
)
def test_the_last_line_of_a_python_script_counts(stdout: str, score: float) -> None:
    assert judge_printed(ended(stdout), last_line_only=True) == Verdict(score=score)


@pytest.mark.parametrize("stdout", ["0.5\ndone", "score=1.0\ndone", "", "True"])
def test_other_lines_of_a_python_script_do_not_count(stdout: str) -> None:
    assert judge_printed(ended(stdout), last_line_only=True).error


def test_a_printed_score_of_a_script_that_failed_is_an_error() -> None:
    verdict = judge_printed(ended("score=1.0\n", status=1))
    assert verdict == Verdict(error="it ended with exit status 1; a score counts only with exit status 0")


@pytest.mark.parametrize(("status", "score"), [(0, 1.0), (1, 0.0), (5, 0.0), (125, 0.0), (255, 0.0)])
def test_a_command_passes_with_status_0_and_fails_with_another(status: int, score: float) -> None:
    assert judge_status(ended(status=status)) == Verdict(score=score)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (126, "could not be executed"),
        (127, "was not found"),
        (137, "killed by SIGKILL"),
        (139, "killed by SIGSEGV"),
        (128 + 40, "killed by signal 40"),
        (None, "ran out of time after 5 s"),
    ],
)
def test_a_program_that_could_not_do_its_work_is_an_error(status: int | None, reason: str) -> None:
    for judge in (judge_status, judge_matches, judge_printed):
        error = judge(ended("score=1.0", status=status)).error
        assert error is not None
        assert reason in error


def test_a_search_passes_by_what_it_found() -> None:
    assert judge_matches(ended("a.py:1:x", 0)).score == 1.0
    assert judge_matches(ended("", 1)) == Verdict(score=0.0)
    assert judge_matches(ended("", 0)).error  # the program says so of a pattern it could not read as a whole
    assert judge_matches(ended("", 8)).error


def test_the_total_is_exact_where_floats_are_not() -> None:
    assert weigh([0.7, 0.2, 0.1], [result(1.0)] * 3).score == 1.0
    assert weigh([0.333333, 0.333333, 0.333333], [result(1.0)] * 3).score == 1.0
    assert weigh([0.7, 0.2, 0.1], [result(0.0), result(1.0), result(1.0)]).score == 0.3
    assert weigh([0.5, 0.5], [result(0.0)] * 2).score == 0.0


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_a_total_lies_between_the_scores(pairs: list[tuple[float, float]]) -> None:
    scores = [score for _, score in pairs]
    total = weigh([weight for weight, _ in pairs], [result(score) for score in scores]).score
    assert min(scores) - 1e-9 <= total <= max(scores) + 1e-9


def test_a_function_in_error_counts_nothing_and_makes_the_result_faulty() -> None:
    partly = weigh([0.5, 0.5], [result(1.0), result(0.0, "it broke")])
    assert partly.score == 0.5
    assert partly.faults()
    assert not weigh([1.0], [result(0.0)]).faults()


def test_an_error_is_the_last_line_of_its_output() -> None:
    verdict = Verdict(error="it broke")
    shown = result_of("lint", verdict, output="some\noutput", seconds=1.23456, python="3.11.7")
    assert view(shown) == {
        "scoring_function_name": "lint",
        "score": 0.0,
        "output": "some\noutput\nscorer lint: it broke\n",
        "state": "error",
        "seconds": 1.235,
        "python": "3.11.7",
    }
