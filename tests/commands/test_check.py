"""`sweep check --static` of a set: what many scenarios share is said once, what needs more of a machine is named."""

import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from orchestrator.common import sweep_command
from tests.ordinary_user import USER, OrdinaryUser


def write_set(place: Path, dockerfiles: dict[str, str]) -> Path:
    """Scenarios by name, each with this Dockerfile and without a solution."""
    for name, dockerfile in dockerfiles.items():
        for folder in ("environment", "tests"):
            (place / name / folder).mkdir(parents=True)
        (place / name / "task.toml").write_text('version = "1.0"\n[environment]\nallow_internet = false\n')
        (place / name / "instruction.md").write_text("Do it.\n")
        (place / name / "tests/test.sh").write_text("echo 1 >/logs/verifier/reward.txt\n")
        (place / name / "environment/Dockerfile").write_text(dockerfile)
    return place


#: Two containers.
SERVICES = "services:\n  main:\n    image: debian\n  db:\n    image: postgres\n"


def checked(folder: Path, *words: str, status: int = 0) -> str:
    command = [*sweep_command(), "check", str(folder), "--static", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended
    return ended.stdout


def records(text: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in text.splitlines()]


def test_equal_findings_of_many_scenarios_are_one_line_and_of_few_their_own(tmp_path: Path) -> None:
    missing = "solution/solve.sh: is missing: the oracle agent cannot check this scenario"
    names = [f"s{number:02}" for number in range(9)]
    many = checked(write_set(tmp_path / "many", dict.fromkeys(names, "FROM debian\n")))
    assert many.splitlines() == [
        f"warning: s00, s01, s02 and 6 more: {missing}",
        "9 of 9 can run here",
        "many: sound",
    ]
    few = checked(write_set(tmp_path / "few", dict.fromkeys(names[:3], "FROM debian\n")))
    assert few.splitlines()[:3] == [f"warning: {name}/{missing}" for name in names[:3]]


def test_the_summary_counts_what_cannot_run_by_class_and_reason(tmp_path: Path) -> None:
    copies = {name: f"FROM debian\nCOPY models/{name}.bin /srv\n" for name in ("a", "b")}
    place = write_set(tmp_path / "set", copies | dict.fromkeys(("c", "d", "e", "f"), "FROM debian\n"))
    (place / "c/environment/docker-compose.yaml").write_text(SERVICES)
    (place / "d/task.toml").write_text("[environment]\nallow_internet = false\ngpus = 1\n")
    (place / "e/task.toml").write_text("[environment]\nallow_internet = false\ngpus = 1\ntpu = 1\n")
    said = checked(place, status=1).splitlines()
    assert said[-6] == "1 of 6 can run here"
    lines = [line.partition(": ")[2] for line in said[-5:-1]]
    assert said[-5].startswith("2: cannot run: COPY: … is not in the context")
    assert sorted(line.partition(":")[0] for line in lines) == [
        *("cannot run", "cannot run", "needs a GPU", "needs a container engine")
    ]
    assert said[-1] == "set: not sound"
    *found, end = records(checked(place, "--json", status=1))
    errors = [(each["scenario"], each["need"]) for each in found if each["severity"] == "error"]
    assert errors == [("a", None), ("b", None), ("c", "engine"), ("d", "gpu"), ("e", "gpu"), ("e", None)]
    assert (end["benchmark"], end["sound"], end["scenarios"], end["can_run"]) == ("set", False, 6, 1)
    assert end["classes"] == {"here": 1, "subuids": 0, "engine": 1, "gpu": 1, "cannot": 3}
    assert sorted((each["class"], each["scenarios"]) for each in end["reasons"]) == [
        *(("cannot", 1), ("cannot", 2), ("engine", 1), ("gpu", 1))
    ]


def test_without_walls_no_scenario_with_an_image_can_run(tmp_path: Path) -> None:
    place = write_set(tmp_path / "set", dict.fromkeys(("a", "b"), "FROM debian\n"))
    said = checked(place, "--isolation", "none", status=1)
    assert "0 of 2 can run here\n2: cannot run: asks for an image: leave out --isolation none\n" in said


NEEDING = {
    "user": "FROM debian\nUSER app\n",
    "adds": "FROM debian\nRUN useradd -m app && su app -c true\n",
    "owns": "FROM debian\nRUN mkdir /srv/a && \\\n    chown 33 /srv/a\n",
    **{f"more-{number}": "FROM debian\nRUN sudo -u postgres true\n" for number in range(4)},
}
CONTENT = {
    "plain": "FROM debian\nRUN apt-get install -y git\n",
    "root": "FROM debian\nUSER root\nUSER 0\n",
    "comment": "FROM debian\n# no chown here\nCOPY etc/sudo /etc/pam.d/sudo\n",
}


@pytest.mark.root
@pytest.mark.parametrize("is_lent_ids", [True, False])
def test_a_user_who_is_lent_no_ids_sees_all_scenarios_that_need_users(*, is_lent_ids: bool) -> None:
    with OrdinaryUser.make(is_lent_ids=is_lent_ids) as user:
        place = write_set(user.home / "set", NEEDING | CONTENT)
        (place / "comment/environment/etc").mkdir()
        (place / "comment/environment/etc/sudo").touch()
        subprocess.run(["chown", "-R", str(USER), place], check=True)
        ended = user.run([*sweep_command(), "check", "set", "--static"], timeout=120)
    assert ended.returncode == 0, ended
    told = [line for line in ended.stdout.splitlines() if "needs other users than root" in line]
    if is_lent_ids:
        assert told == []
    else:
        line, of_class = told
        assert line.startswith(f"warning: {', '.join(sorted(NEEDING))}: environment/Dockerfile: ")
        assert "/etc/subuid has no line that lends ordinary 65,536 ids" in line
        assert of_class.startswith("7: runs here as it should only with lent user ids: needs other users than root")
        assert "10 of 10 can run here" in ended.stdout
