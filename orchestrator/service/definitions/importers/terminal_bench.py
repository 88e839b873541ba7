"""Terminal-Bench 1: folders with a task.yaml, a container, and tests whose verdict is read out of what they print.

Of docker-compose.yaml only what one container needs has a meaning here; what would change the task, and is not carried
over, is refused by its key. The verdict is the one of the set's own parser: `test.sh` reads the output in bash, for an
image may have nothing else.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from orchestrator.core.errors import UsageError
from orchestrator.service.definitions.importers.rows import SourceRow
from orchestrator.service.definitions.importers.scenario_folder import ImportedScenario, Table
from orchestrator.service.definitions.importers.source_folders import files_below, find_folders, read_text
from orchestrator.service.definitions.self_extracting import TEMPLATE

_TASK: Final = "task.yaml"
_COMPOSE: Final = "docker-compose.yaml"
#: What is no part of the image that is built in a task's folder.
_HIDDEN: Final = (_TASK, _COMPOSE, "solution.sh", "solution.yaml", "run-tests.sh", "tests")
#: Keys of a service that have no effect here, and those that are read.
_IGNORED: Final = {"container_name", "hostname", "init", "labels", "platform", "ports", "restart", "stdin_open", "tty"}
_READ: Final = {"build", "command", "deploy", "environment", "image", "volumes", "working_dir"}
#: Commands that do nothing but keep a container.
_WAITS: Final = ("sleep infinity", "tail -f /dev/null", "bash", "sh", "")
#: Names of variables that Terminal-Bench itself fills in.
_OWN: Final = "T_BENCH_"
_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
#: Seconds of a scorer beside the tests.
_READING_S: Final = 60.0
_TEST: Final = """\
#!/bin/bash
# Runs the task's tests, and reads their verdict out of what they print as Terminal-Bench does.
export TEST_DIR=/tests
log=/logs/verifier/output.txt
echo 0 >/logs/verifier/reward.txt
timeout {seconds:g} bash /tests/run-tests.sh >"$log" 2>&1
status=$?
cat "$log"
[[ $status != 124 ]] || exit # out of time
{reading}
echo 1 >/logs/verifier/reward.txt
"""
#: By the name of a parser, the commands that end a script unless the file $log has a verdict that is good.
_READINGS: Final = {
    "pytest": """\
declare -A passed=()
is_summary=
while IFS= read -r line || [[ -n $line ]]; do
    if [[ -z $is_summary ]]; then
        if [[ ${line,,} =~ =+\\ *short\\ test\\ summary\\ info\\ *=+ ]]; then is_summary=yes; fi
        continue
    fi
    read -r verdict name <<<"$line"
    name=${name%$'\\r'}
    case ${verdict%:} in
        PASSED | SKIPPED | XFAIL) verdict=yes ;;
        FAILED) verdict=no name=${name% - *} ;;
        ERROR | XPASS) verdict=no ;;
        *) continue ;;
    esac
    [[ -z $name ]] || passed[${name#*::}]=$verdict
done <"$log"
((${#passed[@]})) || exit
[[ " ${passed[*]} " != *" no "* ]] || exit""",
    "swebench": """\
output=$(<"$log")
begin="SWEBench results starts here" end="SWEBench results ends here"
[[ $output == *"$begin"*"$end"* ]] || exit
output=${output#*"$begin"}
[[ ${output%"$end"*} =~ ^[[:space:]]*PASSED[[:space:]]*$ ]] || exit""",
}


def read_terminal_bench(place: Path) -> Iterator[ImportedScenario | UsageError]:
    """Read a task's folder, or a folder of them; a task that cannot be carried over is an error in its place.

    Raises UsageError.
    """
    for folder in find_folders(place, _TASK, "*", "tasks/*"):
        try:
            yield _scenario(folder)
        except UsageError as error:
            yield error


def _scenario(folder: Path) -> ImportedScenario:
    task = _yaml(folder / _TASK)
    parser = task.text("parser_name", otherwise="pytest")
    if parser not in _READINGS:
        raise task.mistake("parser_name", f"{parser!r}: only {' and '.join(_READINGS)} are read here")
    seconds = task.seconds("max_test_timeout_sec", otherwise=60.0)
    tests = files_below(folder / "tests", into="tests")
    if "tests/test.sh" in tests:
        raise UsageError(f"{folder}/tests/test.sh: rename it; a scenario's own test.sh runs run-tests.sh.")
    service = _service(folder)
    tags = task.values.get("tags")
    return ImportedScenario(
        name=folder.resolve().name,
        statement=task.text("instruction"),
        files={
            "tests/run-tests.sh": read_text(folder / "run-tests.sh"),
            **tests,
            "tests/test.sh": _TEST.format(seconds=seconds, reading=_READINGS[parser]),
            **_solution(folder),
            **_image(folder, service),
        },
        metadata={
            "difficulty": task.text("difficulty", otherwise="unknown"),
            "category": task.text("category", otherwise="software_engineering"),
            "tags": [str(tag) for tag in tags] if isinstance(tags, list) else [],
        },
        environment=_settings(service),
        variables=_variables(service),
        allow_internet=True,
        agent_timeout=task.seconds("max_agent_timeout_sec", otherwise=360.0),
        verifier_timeout=seconds + _READING_S,
    )


def _solution(folder: Path) -> dict[str, str]:
    if (folder / "solution.sh").exists():
        solution = read_text(folder / "solution.sh")
        return {"solution/solve.sh": "exec bash /solution/solution.sh\n", "solution/solution.sh": solution}
    if (folder / "solution.yaml").exists():
        raise UsageError(f"{folder}/solution.yaml: keys that are typed cannot be carried over: write a solution.sh.")
    return {}


def _service(folder: Path) -> SourceRow:
    """Return the one service of docker-compose.yaml. Raises UsageError for what cannot be carried over."""
    file = folder / _COMPOSE
    if not file.exists():
        return SourceRow(file=folder / "Dockerfile", values={"build": "."})
    services = _yaml(file).values.get("services")
    if not isinstance(services, dict) or not services:
        raise UsageError(f"{file}: services: one container was expected.")
    if len(services) > 1:
        raise UsageError(f"{file}: services: {', '.join(services)}: only a task of one container can be carried over.")
    ((name, values),) = services.items()
    service = SourceRow(file=file, place=f"services.{name}", values=values or {})
    if unknown := [key for key in service.values if key not in _READ | _IGNORED]:
        raise service.mistake(", ".join(unknown), "cannot be carried over")
    if foreign := [each for each in _listed(service, "volumes") if _OWN not in each]:
        raise service.mistake("volumes", f"{', '.join(foreign)}: only those of the logs can be carried over")
    words = service.values.get("command") or ""
    words = shlex.split(words) if isinstance(words, str) else [str(word) for word in words]
    command = " ".join(words[2:] if words[1:2] == ["-c"] else words)
    if command not in _WAITS:
        raise service.mistake("command", f"{command!r}: a container that runs a program cannot be carried over")
    return service


def _image(folder: Path, service: SourceRow) -> Mapping[str, str | Path]:
    """Return the files that a service's image is built of. Raises UsageError."""
    build = service.values.get("build")
    if build is None:
        return {}
    keys = {"context": build} if isinstance(build, str) else dict(build)
    if unknown := keys.keys() - {"context", "dockerfile"}:
        raise service.mistake(f"build.{min(unknown)}", "cannot be carried over")
    context = (folder / keys.get("context", ".")).resolve()
    if not context.is_relative_to(folder.resolve()):
        raise service.mistake("build.context", "it is outside the task's folder")
    dockerfile = read_text(context / keys.get("dockerfile", "Dockerfile"))
    return {**files_below(context, into="environment", without=_HIDDEN), "environment/Dockerfile": dockerfile}


def _settings(service: SourceRow) -> Table:
    """Return what a service says for [environment]. Raises UsageError."""
    settings: dict[str, str | float] = {}
    if "build" not in service.values:
        settings["docker_image"] = service.text("image")
    if "working_dir" in service.values:
        settings["workdir"] = service.text("working_dir")
    deploy = service.values.get("deploy")
    limits: Any = deploy
    for key in ("resources", "limits"):
        limits = limits.get(key) if isinstance(limits, dict) else None
    for key, value in (limits or {}).items():
        if key == "cpus" and _NUMBER.fullmatch(str(value)):
            settings["cpus"] = float(value)
        elif key == "memory" and "$" not in str(value):
            settings["memory"] = str(value)
    return settings


def _variables(service: SourceRow) -> dict[str, str]:
    """Return a service's variables, without those of Terminal-Bench itself. Raises UsageError."""
    given = service.values.get("environment") or {}
    pairs = given.items() if isinstance(given, dict) else (each.partition("=")[::2] for each in map(str, given))
    variables: dict[str, str] = {}
    for name, value in pairs:
        text = "" if value is None else str(value)
        if _OWN in text:
            continue
        if "$" in text and not TEMPLATE.fullmatch(text):
            raise service.mistake(f"environment.{name}", f"{text!r}: only a whole value may be a variable's")
        variables[str(name)] = text
    return variables


def _listed(service: SourceRow, key: str) -> Sequence[str]:
    given = service.values.get(key) or []
    return [str(each) for each in given] if isinstance(given, list) else [str(given)]


def _yaml(file: Path) -> SourceRow:
    """Read a document of YAML. Raises UsageError."""
    try:
        values = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise UsageError(f"{file}: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{file}: a table of keys was expected.")
    return SourceRow(file=file, values=values)
