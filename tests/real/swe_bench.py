"""Instances as SWE-bench publishes them, of our own making, and the package `swebench` to read and to judge them.

An instance is a small repository with a bug. An odd one has tests for pytest, an even one tests that are run and shown
as Django's are. Rows have the columns of all versions of the package: those by which it knows an evaluation, and those
that bring one. The package is installed once for all tests, in an environment of its own that also sees ours.
"""

import fcntl
import io
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.caches import shared_cache
from tests.container_engine import dockerd
from tests.e2e.conftest import ROOT
from tests.images.base_images import base_image
from tests.images.packing import PATH, PackedImage

from .conftest import is_answered

#: What the evaluation of a repository in Python expects of an image: an environment to activate, and these programs.
_ENVIRONMENT: Final = {
    "opt/miniconda3/bin/activate": "conda() { true; }\n",
    "usr/local/bin/python": '#!/bin/sh\nexec python3 "$@"\n',
    "usr/local/bin/pytest": '#!/bin/sh\nexec python3 -m pytest "$@"\n',
}
#: Runs the tests of modules, and shows them, as Django's own program of this name.
_RUNTESTS: Final = """\
#!/usr/bin/env python3
import sys, unittest
sys.path[:0] = ["tests", "."]
names = [f"{word}.tests" if "." not in word else word for word in sys.argv[1:] if word.startswith("numbers_")]
suite = unittest.defaultTestLoader.loadTestsFromNames(names)
sys.exit(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())
"""
_EVALUATION: Final = """\
#!/bin/bash
set -uxo pipefail
source /opt/miniconda3/bin/activate
conda activate testbed
cd /testbed
git config --global --add safe.directory /testbed
git checkout {base} {file}
git apply -v - <<'EOF_114329324912'
{patch}
EOF_114329324912
: '>>>>> Start Test Output'
{command}
: '>>>>> End Test Output'
git checkout {base} {file}
"""
#: Two kinds of repository, by the names of rows.
_FLASK: Final = {
    "repo": "pallets/flask",
    "version": "2.3",
    "module": "flask_numbers",
    "file": "tests/test_numbers.py",
    "command": "pytest -rA tests/test_numbers.py",
    "called": "tests/test_numbers.py::{}",
    "log_parser": "parse_log_flask",
}
_DJANGO: Final = {
    "repo": "django/django",
    "version": "4.2",
    "module": "django_numbers",
    "file": "tests/numbers_/tests.py",
    "command": "./tests/runtests.py --verbosity 2 --settings=test_sqlite --parallel 1 numbers_.tests",
    "called": "{0} (numbers_.tests.Numbers.{0})",
    "log_parser": "parse_log_django",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A row, a layer with its repository, and a patch that mends what is asked for and breaks what worked."""

    row: Mapping[str, Any]
    layer: bytes
    harm: str

    @property
    def name(self) -> str:
        return str(self.row["instance_id"])

    @property
    def image(self) -> PackedImage:
        return PackedImage.of(base_image("testbed"), self.layer)


def make_instance(number: int, place: Path) -> Instance:
    """Make the instance of a number, the same one always, with its repository in the new folder `place`."""
    kind = _FLASK if number % 2 else _DJANGO
    right = f"def scaled(number):\n    return number * {number}\n\n\ndef same(number):\n    return number\n"
    known = [(f"test_same_{each}", f"assert same({each}) == {each}") for each in range(3)]
    new = [(f"test_scaled_{each}", f"assert scaled({each}) == {each * number}") for each in (20, 30)]
    module, file = f"{kind['module']}.py", kind["file"]
    _write(place, {module: right.replace("*", "+"), file: _tests(kind, known), "tests/runtests.py": _RUNTESTS})
    (place / "tests/runtests.py").chmod(0o755)
    _git(place, "init", "--quiet")
    _git(place, "add", "--all")
    _git(place, "commit", "--quiet", "--message", "Before")
    base, test_patch = _git(place, "rev-parse", "HEAD").strip(), _patch(place, file, _tests(kind, known + new))
    command = kind["command"]
    name = f"{kind['repo'].replace('/', '__')}-{number}"
    row = {
        "instance_id": name,
        "repo": kind["repo"],
        "base_commit": base,
        "patch": _patch(place, module, right),
        "test_patch": test_patch,
        "problem_statement": f"scaled() should multiply by {number}, and adds it.",
        "hints_text": "Nobody may see that it is the operator.",
        "version": kind["version"],
        "FAIL_TO_PASS": json.dumps([kind["called"].format(each) for each, _ in new]),
        "PASS_TO_PASS": [kind["called"].format(each) for each, _ in known],
        "environment_setup_commit": base,
        "image": f"swebench/sweb.eval.x86_64.{name.replace('__', '_1776_')}:latest",
        "eval_script": _EVALUATION.format(base=base, file=file, patch=test_patch, command=command),
        "log_parser": kind["log_parser"],
        "eval_type": "pass_and_fail",
    }
    harm = _patch(place, module, right.replace("return number\n", "return number or None\n"))
    return Instance(row=row, layer=_layer(place), harm=harm)


def write_lines(file: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    return file


def swebench_python(version: str) -> Path:
    """Return a Python that has this version of swebench, and us; skip the test where no package index answers."""
    place = shared_cache() / f"swebench-{version}"
    python = place / "bin/python"
    with place.with_suffix(f"{place.suffix}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "whole").exists():
            if not is_answered(sys.executable, "-m", "pip", "index", "versions", "swebench"):
                pytest.skip("no package index can be reached")
            subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
            wanted = ["install", "--quiet", f"swebench=={version}", "pyarrow"]
            subprocess.run([python, "-m", "pip", *wanted], check=True, stdout=subprocess.DEVNULL)
            (place / "whole").touch()
        # What is ours comes last, and may be elsewhere today.
        site = next(place.glob("lib/python*/site-packages"))
        (site / "ours.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    return python


def judged_by_swebench(place: Path, instances: Sequence[Instance], patches: Mapping[str, str]) -> set[str]:
    """Return the names of the instances that swebench's own command finds resolved, in containers of Docker's.

    Skips where no engine is.
    """
    place.mkdir()
    write_lines(place / "rows.jsonl", [each.row for each in instances])
    predictions = [
        {"instance_id": each.name, "model_patch": patches[each.name], "model_name_or_path": "it"} for each in instances
    ]
    write_lines(place / "it.jsonl", predictions)
    command = [str(swebench_python("5.0.2").with_name("swebench")), "eval", "rows.jsonl", "--predictions", "it.jsonl"]
    with dockerd() as socket:
        own = {"DOCKER_HOST": f"unix://{socket}", "DOCKER_CONFIG": str(socket.parent), "DOCKER_BUILDKIT": "0"}
        environment = {**os.environ, **own}
        (testbed,) = base_image("testbed").layers
        subprocess.run(["docker", "import", testbed.blob, "testbed"], env=environment, check=True, capture_output=True)
        for each in instances:
            context = place / each.name
            context.mkdir()
            (context / "layer.tar").write_bytes(each.layer)
            (context / "Dockerfile").write_text(f"FROM testbed\nADD layer.tar /\nENV {PATH}\nWORKDIR /testbed\n")
            build = ["docker", "build", "--tag", each.row["image"], context]
            subprocess.run(build, env=environment, check=True, capture_output=True)
        # Each container takes 15 seconds to stop.
        words = ["--run-id", "it", "--workers", str(len(instances))]
        subprocess.run([*command, *words], cwd=place, env=environment, check=True, capture_output=True)
    report = json.loads((place / "it.it.json").read_text())
    assert not report["error_ids"], report
    return set(report["resolved_ids"])


def _tests(kind: Mapping[str, str], cases: Sequence[tuple[str, str]]) -> str:
    """Return the text of a file of tests, names and what they assert."""
    head = f"from {kind['module']} import same, scaled\n"
    if kind is _DJANGO:
        methods = "".join(f"\n    def {name}(self):\n        {body}\n" for name, body in cases)
        return f"import unittest\n\n{head}\n\nclass Numbers(unittest.TestCase):{methods}"
    return head + "".join(f"\n\ndef {name}():\n    {body}\n" for name, body in cases)


def _write(place: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)


def _patch(place: Path, file: str, text: str) -> str:
    """Return a change of a file as git shows it, and take it back."""
    _write(place, {file: text})
    patch = _git(place, "diff")
    _git(place, "checkout", "--quiet", ".")
    return patch


def _git(place: Path, *words: str) -> str:
    who = [("AUTHOR", "NAME"), ("AUTHOR", "EMAIL"), ("COMMITTER", "NAME"), ("COMMITTER", "EMAIL")]
    own = {f"GIT_{role}_{what}": "somebody" for role, what in who} | {"GIT_CONFIG_GLOBAL": os.devnull}
    own |= {f"GIT_{role}_DATE": "2024-01-01T00:00:00Z" for role in ("AUTHOR", "COMMITTER")}
    environment = {"PATH": os.environ["PATH"], **own}
    done = subprocess.run(["git", *words], cwd=place, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


def _layer(repository: Path) -> bytes:
    """Return a layer with a repository as /testbed, and what evaluations expect beside it."""

    def owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        return info

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(repository, "testbed", filter=owned)
        for name, text in _ENVIRONMENT.items():
            info = tarfile.TarInfo(name)
            info.mode, info.size = 0o755, len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return file.getvalue()
