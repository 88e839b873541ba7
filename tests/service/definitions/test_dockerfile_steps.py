"""The environment that a Dockerfile describes, and the lines that are refused."""

import pytest

from orchestrator.service.diagnostics import Report
from orchestrator.service.environments.dockerfile import INHERITED_PATH, Copy, Folder, Recipe, Run, read_dockerfile


def read(text: str) -> Recipe:
    report = Report()
    recipe = read_dockerfile(text, report)
    assert report.errors == []
    return recipe


def refused(text: str) -> dict[str, str]:
    """Messages of errors by line."""
    report = Report()
    read_dockerfile(f"FROM x\n{text}", report)
    return {each.key: each.message for each in report.errors}


def test_a_common_dockerfile_becomes_steps() -> None:
    recipe = read(
        "ARG TAG=3.12\n"
        "FROM --platform=linux/amd64 python:${TAG}-slim\n"
        "LABEL who=me\n"
        'ENV MODE=fast NAME="a b"\n'
        "ENV OLD the old form\n"
        "WORKDIR /srv\n"
        "WORKDIR tool\n"
        "COPY --chown=root:root a.txt b/ ./\n"
        'COPY --chmod=750 ["with space", "/opt/x y"]\n'
        "RUN make \\\n  all\n"
        'RUN ["./run", "$MODE"]\n'
        'CMD ["python"]\n'
    )
    copies = [step for step in recipe.steps if isinstance(step, Copy)]
    runs = [step for step in recipe.steps if isinstance(step, Run)]
    assert [step.path for step in recipe.steps if isinstance(step, Folder)] == ["/srv", "/srv/tool"]
    assert (copies[0].sources, copies[0].target, copies[0].is_folder) == (("a.txt", "b/"), "/srv/tool", True)
    assert (copies[1].sources, copies[1].target, copies[1].is_folder, copies[1].mode) == (
        ("with space",),
        "/opt/x y",
        False,
        0o750,
    )
    assert [step.argv for step in runs] == [("/bin/sh", "-c", "make   all"), ("./run", "$MODE")]
    assert {step.cwd for step in runs} == {"/srv/tool"}
    assert recipe.environment == {"MODE": "fast", "NAME": "a b", "OLD": "the old form"}
    assert runs[0].environment == {"TAG": "3.12", **recipe.environment}
    assert recipe.working_directory == "/srv/tool"


def test_the_working_directory_is_app_unless_a_line_says_otherwise() -> None:
    recipe = read("FROM x\nCOPY a b\n")
    assert recipe.working_directory == "/app"
    assert isinstance(recipe.steps[0], Copy)
    assert recipe.steps[0].target == "/app/b"


def test_variables_are_filled_in_where_docker_does_and_left_to_the_shell_in_run() -> None:
    recipe = read(
        "FROM x\nARG D=/data\nENV A=1\nENV A=2 B=$A\nENV PATH=$D/bin:$PATH\nWORKDIR $D\n"
        "COPY x$B /t/${A:+yes}\nRUN echo $A\n"
    )
    assert recipe.environment == {"A": "2", "B": "1", "PATH": f"/data/bin:{INHERITED_PATH}"}
    copy, run = recipe.steps[1:]
    assert isinstance(copy, Copy)
    assert isinstance(run, Run)
    assert (copy.sources, copy.target) == (("x1",), "/t/yes")
    assert run.argv[-1] == "echo $A"


def test_here_documents_run_and_are_copied() -> None:
    recipe = read(
        "FROM x\nENV A=1\nRUN <<EOF\nset -e\necho $A\nEOF\nRUN python3 - <<EOF\nprint(1)\nEOF\n"
        "COPY <<EOF <<'RAW' /etcetera/\n$A\nEOF\n$A\nRAW\nCOPY <<EOF /app/one.txt\nx\nEOF\n"
    )
    first, second, several, one = recipe.steps
    assert isinstance(first, Run)
    assert isinstance(second, Run)
    assert isinstance(several, Copy)
    assert isinstance(one, Copy)
    assert first.argv == ("/bin/sh", "-c", "set -e\necho $A\n")
    assert second.argv[-1] == "python3 - <<EOF\nprint(1)\nEOF\n"
    assert several.texts == (("EOF", "1\n"), ("RAW", "$A\n"))
    assert (several.target, several.is_folder) == ("/etcetera", True)
    assert (one.texts, one.target, one.is_folder) == ((("EOF", "x\n"),), "/app/one.txt", False)


def test_another_shell_is_used_from_its_line_on() -> None:
    recipe = read('FROM x\nRUN a\nSHELL ["/bin/bash", "-o", "pipefail", "-c"]\nRUN b\n')
    assert [step.argv for step in recipe.steps if isinstance(step, Run)] == [
        ("/bin/sh", "-c", "a"),
        ("/bin/bash", "-o", "pipefail", "-c", "b"),
    ]


def test_a_setup_script_that_the_dockerfile_handles_is_its_own() -> None:
    assert read("FROM x\nCOPY setup.sh /tmp/\nRUN bash /tmp/setup.sh\n").owns_setup
    assert not read("FROM x\n# setup.sh runs later\nCOPY . .\n").owns_setup


def test_lines_that_mean_nothing_here_are_noted() -> None:
    report = Report()
    read_dockerfile("FROM a:1\nUSER root\nEXPOSE 80\nHEALTHCHECK NONE\nVOLUME /data\nENTRYPOINT x\n", report)
    assert [(each.severity, each.key) for each in report.problems] == [("note", f"line {n}") for n in range(1, 7)]
    assert "a:1 is not fetched" in report.problems[0].message


def test_all_lines_that_cannot_be_carried_out_are_reported_at_once() -> None:
    assert list(refused("RUN apt-get update\nFROM y\nUSER nobody\nCPOY a b\nRUN true\nADD http://x/y /app/\n")) == [
        f"line {number}" for number in (2, 3, 4, 5, 7)
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("FROM y AS second", "more than one stage is not supported"),
        ("COPY --from=build a b", "--from=build is not supported"),
        ("COPY --parents a b/", "--parents is not supported"),
        ("COPY --chmod=u+x a b", "expected an octal number"),
        ("COPY a", "expected a source and a target"),
        ("COPY a b c", "must be a folder and end with /: c/"),
        ("COPY ../a b", "leaves the folder environment/"),
        ("COPY a /usr/local/bin/", "/usr is the system's, which is read-only"),
        ("COPY a /etc/x", "/etc is the system's"),
        ("ADD https://x.example/y /app/", "there is no network"),
        ("ADD a.tar.gz /app/", "archives are not unpacked; COPY it and RUN tar -xf"),
        ("WORKDIR /usr/src/app", "/usr is the system's"),
        ("USER www-data", "a devbox has one ordinary user"),
        ("RUN --mount=type=cache,target=/x make", "--mount=type=cache,target=/x is not supported"),
        ("RUN --network=host make", "--network=host is not supported"),
        ("RUN <<EOF\n#!/usr/bin/env python3\nEOF", "opens with #! is not supported"),
        ("ONBUILD RUN x", "not supported"),
        ("COPPY a b", "unknown instruction; did you mean COPY?"),
        ("ENV A", "A needs a value"),
        ("ENV A=1 B", "expected NAME=value, got B"),
        ("SHELL bash", "expected ["),
        ("COPY 'a b", "a quote ' is not closed"),
        ("RUN", "it needs something after it"),
    ],
)
def test_a_line_is_refused_by_number_with_the_reason(line: str, why: str) -> None:
    errors = refused(line + "\n")
    assert list(errors) == ["line 2"]
    assert why in errors["line 2"]


def test_a_file_system_root_cannot_be_the_working_directory() -> None:
    assert "the last WORKDIR is /" in refused("WORKDIR /\n")[""]
    assert refused("WORKDIR /\nRUN pwd\nWORKDIR /app\n") == {}


@pytest.mark.parametrize(
    "script",
    [
        "apt-get update && apt-get install -y git",
        "set -ex; export A=1; DEBIAN_FRONTEND=noninteractive apt install x",
        "if ! command -v git; then sudo -E apt-get install git; fi",
        "cd /x || (apk add git)",
        "/usr/bin/dnf install x",
        "<<EOF\nset -e\napt-get update\nEOF",
        '["apt-get", "update"]',
        "pip install --no-cache-dir pytest==8.0",
        "python3 -m pip install -r requirements.txt",
        "uv pip install x",
    ],
)
def test_installing_is_refused_with_what_to_do(script: str) -> None:
    errors = refused(f"RUN {script}\n")
    assert list(errors) == ["line 2"]
    assert "COPY" in errors["line 2"]


@pytest.mark.parametrize(
    "script",
    [
        "echo apt-get install is not run",
        "grep -r pip install .",
        "pip install --no-index --find-links wheels --target /app/lib x",
        "echo 'it''s; apt-get' > x",
        "git config --global user.name apt",
        "pip list",
    ],
)
def test_words_that_only_look_like_it_are_not_refused(script: str) -> None:
    assert refused(f"RUN {script}\n") == {}
