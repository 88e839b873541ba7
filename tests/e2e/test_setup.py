"""scripts/setup and scripts/sweep: an environment that does not work here is made anew, whatever became of it.

What they call is a Python that makes environments without a network and writes down what it was asked for.
"""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import wait_until

from .conftest import ROOT

#: Makes an environment whose Python is this script's neighbour, and whose `sweep` says where it is.
PYTHON = """#!/bin/bash
echo "$(basename "$0") $*" >>{asked}
case "$*" in
*"-m venv --clear .venv") rm -rf .venv && mkdir -p .venv/bin && ln -s {inner} .venv/bin/python ;;
*"-m pip"*"--editable ."*) echo made >.venv/bin/sweep ;;
*"-m pip"*) while [ -e {gate} ]; do sleep 0.02; done ;;
"-I "*.venv/bin/sweep*) [ -e "$2" ] && echo "sweep in $PWD with ${{*:3}}" ;;
esac
"""


#: Words that tell what a call of the Python is for.
STEPS = ("-m venv", "--requirement", "--editable", "bin/sweep")
ANEW = list(STEPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """A checkout, and a Python to make environments with."""

    folder: Path
    tools: Path

    @property
    def asked(self) -> list[str]:
        """Calls of the Python since the last look, without the checks of its version."""
        file = self.tools / "asked"
        lines = [line for line in file.read_text().splitlines() if " -c " not in line] if file.exists() else []
        file.unlink(missing_ok=True)
        return [next(word for word in STEPS if word in line) for line in lines]

    def start(self, *words: str, script: str = "sweep", folder: Path | None = None) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [(folder or self.folder) / "scripts" / script, *words],
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
            env={"PATH": os.environ["PATH"], "SWEEP_PYTHON": str(self.tools / "outer")},
        )

    def sweep(self, folder: Path | None = None) -> str:
        """Output of `sweep run`, which must work."""
        process = self.start("run", folder=folder)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return out


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    folder, tools = tmp_path / "clone", tmp_path / "tools"
    tools.mkdir()
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    words = {"asked": tools / "asked", "inner": tools / "inner", "gate": tools / "gate"}
    for name in ("outer", "inner"):
        (tools / name).write_text(PYTHON.format(**words))
        (tools / name).chmod(0o755)
    return Clone(folder=folder, tools=tools)


def test_the_first_use_makes_an_environment_and_the_second_finds_it(clone: Clone) -> None:
    assert clone.sweep().endswith("with run\n")
    assert clone.asked == ANEW
    clone.sweep()
    assert clone.asked == ["bin/sweep"]


def test_a_moved_checkout_makes_the_environment_again(clone: Clone) -> None:
    """Its files name the old place."""
    clone.sweep()
    moved = clone.folder.rename(clone.folder.with_name("a new place"))
    assert clone.asked == ANEW
    clone.sweep(moved)
    assert clone.asked == ANEW
    clone.sweep(moved)
    assert clone.asked == ["bin/sweep"]


def test_a_missing_or_other_python_makes_the_environment_again(clone: Clone) -> None:
    clone.sweep()
    python = clone.folder / ".venv/bin/python"
    assert clone.asked == ANEW
    python.unlink()
    python.symlink_to("/nowhere/python3")
    clone.sweep()
    assert clone.asked == ANEW
    python.unlink()
    python.symlink_to(clone.tools / "outer")
    clone.sweep()
    assert clone.asked == ANEW


def test_an_environment_of_an_earlier_script_is_made_again(clone: Clone) -> None:
    """It does not say where it was made."""
    clone.sweep()
    assert clone.asked == ANEW
    (clone.folder / ".venv/.made-for-running").write_text("")
    clone.sweep()
    assert clone.asked == ANEW


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_a_newer_list_of_packages_brings_it_up_to_date(clone: Clone, name: str) -> None:
    clone.sweep()
    assert clone.asked == ANEW
    later = time.time() + 10
    os.utime(clone.folder / name, (later, later))
    stamp = clone.folder / ".venv/.made-for-running"
    clone.sweep()
    assert clone.asked == ANEW[1:]
    os.utime(stamp, (later + 1, later + 1))
    clone.sweep()
    assert clone.asked == ["bin/sweep"]


def test_an_interrupted_environment_is_made_again(clone: Clone) -> None:
    gate = clone.tools / "gate"
    gate.touch()
    process = clone.start("run")
    asked = clone.tools / "asked"
    wait_until(lambda: asked.exists() and "--requirement" in asked.read_text(), "it installs nothing")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    gate.unlink()
    assert clone.asked == ANEW[:2]
    clone.sweep()
    assert clone.asked == ANEW


def test_two_first_uses_at_once_make_one_environment_and_both_work(clone: Clone) -> None:
    processes = [clone.start("run") for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert sorted(clone.asked) == sorted([*ANEW, "bin/sweep"])


def test_packages_for_the_tests_are_added_to_an_existing_environment(clone: Clone) -> None:
    clone.sweep()
    assert clone.asked == ANEW
    process = clone.start("tests", script="setup")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert clone.asked == ANEW[1:3]
    clone.sweep()
    assert clone.asked == ["bin/sweep"]
