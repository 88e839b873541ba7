"""The scripts and the container files: what they name is there, and what they run works."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from orchestrator import __version__
from orchestrator.cli import app

from .conftest import ROOT

if TYPE_CHECKING:
    from .conftest import Desk

SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix)
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = (ROOT / "docker" / "compose.yaml").read_text()
LOCK = (ROOT / "requirements.lock").read_text()


def parse(words: list[str]) -> dict[str, Any]:
    """Parse these words as a command line; nothing is run. Fails for an unknown command or option."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("sweep", list(words))
    while (subcommands := getattr(command, "commands", None)) is not None:
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None, f"no such command among {sorted(subcommands)}"
        context = command.make_context(command.name, list(words), parent=context)
    return dict(context.params)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_executable_bash_without_mistakes_of_grammar(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", script], check=True, timeout=20)


def test_the_command_of_a_clone_that_is_set_up_works_from_anywhere_and_through_links(desk: "Desk") -> None:
    """And starts at once: nothing is installed, nothing is said."""
    clone = desk.home.parent / "clone"
    shutil.copytree(ROOT / "scripts", clone / "scripts")
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, clone / name)
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "sweep").symlink_to(Path(sys.executable).with_name("sweep"))
    python = clone / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (clone / ".venv" / ".made-for-running").write_text(f"{clone}\n{python}\n")
    (desk.folder / "link").symlink_to(clone / "scripts" / "sweep")
    (desk.folder / "link to link").symlink_to("link")
    for command in (str(clone / "scripts" / "sweep"), "./link to link"):
        ended = desk.spawn([command, "--version"]).end()
        assert (ended.status, ended.out, ended.err) == (0, f"sweep {__version__}\n", ""), str(ended)


def test_the_lock_file_names_versions_and_hashes_and_no_index() -> None:
    requirements = [line for line in LOCK.splitlines() if line and line[0] not in " #"]
    assert all(re.match(r"[a-z0-9-]+(\[.*\])?==[^ ]+( ;.*)? \\$", line) for line in requirements)
    assert LOCK.count("--hash=sha256:") >= len(requirements)
    assert "://" not in LOCK
    assert "\n# tests\n" in LOCK
    running = LOCK.split("\n# tests\n")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name = re.split(r"[\[<>=;]", requirement)[0].strip().replace("_", "-").lower()
        assert re.search(rf"^{re.escape(name)}(\[.*\])?==", running, re.MULTILINE), name


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    lines = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_files_that_the_image_copies_exist() -> None:
    sources = [
        source
        for name, words in instructions()
        if name == "COPY" and "--from" not in words
        for source in words.split()[:-1]
    ]
    assert {"requirements.lock", "pyproject.toml", "README.md", "LICENSE", "orchestrator", "agents"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_runs_what_setup_runs() -> None:
    """The same half of the lock file, the same flags, and what the build itself needs is among what is copied."""
    runs = " ".join(words for name, words in instructions() if name == "RUN")
    setup = (ROOT / "scripts" / "setup").read_text()
    for words in ("sed '/^# tests/q'", "--require-hashes --requirement", "--no-deps --no-build-isolation"):
        assert words in runs
        assert words in setup
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert all(f"\n{name}==" in LOCK for name in ("hatchling", "editables"))
    assert build["build-system"]["build-backend"] == "hatchling.build"
    for line in runs.split("&&"):
        subprocess.run(["bash", "-nc", line], check=True, timeout=20)


def test_the_image_starts_the_command_as_an_ordinary_user() -> None:
    said = dict(instructions())
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (entry,) = re.findall(r'"([^"]+)"', said["ENTRYPOINT"])
    assert entry in scripts
    assert said["USER"] == "sweep"
    assert said["WORKDIR"] == "/data"
    assert "SWEEP_RUNS=/data/runs" in said["ENV"]
    assert said["EXPOSE"] == str(parse(["serve"])["port"])
    version = re.search(r"python:(\d)\.(\d+)", said["FROM"])
    assert version is not None
    assert (int(version[1]), int(version[2])) >= (3, 11)


def compose_services() -> dict[str, dict[str, str]]:
    """The lines of each service in compose.yaml, by key; nested maps stay text."""
    block = COMPOSE.split("services:\n")[1].split("\nvolumes:")[0]
    services: dict[str, dict[str, str]] = {}
    for line in block.splitlines():
        name, colon, value = line.strip().partition(":")
        if re.match(r"  \w", line):
            current = services.setdefault(name, {})
        elif re.match(r"    \w", line):
            key = name
            current[key] = value.strip()
        elif colon or line.strip():
            current[key] += "\n" + line.strip()
    return services


def words_of(flow: str) -> list[str]:
    """A YAML list in brackets as strings, without the comment behind it."""
    return [word.strip().strip("\"'") for word in flow.partition("#")[0].strip().strip("[]").split(",")]


def test_the_compose_file_builds_and_runs_what_there_is() -> None:
    services = compose_services()
    assert services.keys() == {"service", "sweep"}
    for service in services.values():
        build = dict(re.findall(r"(\w+): ([^,}]+)", service["build"]))
        context = (ROOT / "docker" / build["context"]).resolve()
        assert context == ROOT
        assert (context / build["dockerfile"]).is_file()
    serving, running = (parse(words_of(services[name]["command"])) for name in ("service", "sweep"))
    assert serving["host"] == "0.0.0.0"
    assert running["endpoint"] == f"http://service:{serving['port']}"
    assert running["benchmark"] == "bugfix-mini"
    assert f"'127.0.0.1', {serving['port']}" in services["service"]["healthcheck"]
    assert "service: {condition: service_healthy}" in services["sweep"]["depends_on"]
    assert "SWEEP_TOKEN" in services["service"]["environment"]
    assert "RUNLOOP_API_KEY" in services["sweep"]["environment"]
    volumes = {line.strip().rstrip(":") for line in COMPOSE.split("\nvolumes:\n")[1].splitlines()}
    for service in services.values():
        assert {mount.split(":")[0] for mount in words_of(service["volumes"])} <= volumes
    (probe,) = re.findall(r'"-c", "([^"]+)"', services["service"]["healthcheck"])
    compile(probe, "healthcheck", "exec")
