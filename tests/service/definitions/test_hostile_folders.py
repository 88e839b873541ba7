"""Folders that nobody would write by hand: each is its own scenario's mistake, told soon, and hides no other."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from orchestrator.service.content import MAX_TOML, Contents, TomlError, Unfit, listing, parse_toml, read_file
from orchestrator.service.definitions.catalog import Catalog, problems
from orchestrator.service.definitions.index import identify
from orchestrator.service.environments.build_context import BuildContext
from orchestrator.service.errors import BadRequest

pytestmark = pytest.mark.anyio

Make = Callable[..., Path]
Write = Callable[[Path, Mapping[str, str | bytes]], Path]
Spoil = Callable[[Path], None]

#: More than any machine here would read in a second, and hardly a block of the disk.
HUGE = 5 << 30
ROOT = Path(__file__).parents[3]


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(HUGE)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def listener(path: Path) -> None:
    """A socket; its name must be short."""
    path.unlink(missing_ok=True)
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def link(target: str) -> Spoil:
    def spoil(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return spoil


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def latin1(path: Path) -> None:
    Path(os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9.txt")).write_text("x")


def deep(path: Path) -> None:
    """More folders in each other than are followed, and few enough for others to remove."""
    here = os.open(path.parent, os.O_RDONLY)
    for _ in range(150):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


SPOILT: Mapping[str, tuple[str, Spoil, str]] = {
    "a settings file without end": ("task.toml", sparse, r"task\.toml: has 5,368,709,120 bytes; at most 1,048,576"),
    "a statement without end": ("instruction.md", sparse, r"instruction\.md: has 5,368,709,120 bytes"),
    "a test without end": ("tests/test.sh", sparse, r"tests/: has 5,120 MiB \(test\.sh: 5,120\); at most 128"),
    "a solution without end": ("solution/data", sparse, r"solution/: has 5,120 MiB \(data: 5,120\)"),
    "a pipe for settings": ("task.toml", pipe, r"task\.toml: is a pipe"),
    "a pipe for a statement": ("instruction.md", pipe, r"instruction\.md: is a pipe"),
    "a pipe in tests": ("tests/p", pipe, r"tests/p: is a pipe"),
    "a socket in tests": ("tests/s", listener, r"tests/s: is a socket"),
    "a circle for settings": ("task.toml", link("task.toml"), r"task\.toml: is a link to task\.toml, which goes round"),
    "a circle in tests": ("tests/a", link("a"), r"tests/a: is a link to a, which goes round in a circle"),
    "a way out": ("tests/a", link("/etc/passwd"), r"tests/a: is a link to /etc/passwd, which leaves the benchmark"),
    "settings elsewhere": ("task.toml", link("/etc/passwd"), r"task\.toml: is a link to /etc/passwd, which leaves"),
    "a Latin-1 name": ("tests/x", latin1, r"tests/caf\\xe9\.txt: has a name that is not UTF-8"),
    "folders in folders": ("tests/x", deep, r"d: is a folder below 100 others"),
    "a folder for a program": ("tests/test.sh", folder, r"tests/test\.sh: is missing"),
}


async def told(bench: Path, name: str) -> str:
    """Messages about a scenario when it is asked for; its neighbour is asked for too, and all of it is quick."""
    started = time.monotonic()
    catalog = Catalog([bench])
    (benchmark,) = await catalog.benchmarks()
    assert len(benchmark.scenario_ids) == 2
    usable = await catalog.scenarios(benchmark.scenario_ids)
    assert [each["name"] for each in usable.values()] == ["good"]
    with pytest.raises(BadRequest) as caught:
        await catalog.scenario(identify("scn", f"bench/{name}"))
    assert time.monotonic() - started < 2, "each in under a second"
    assert caught.value.message.encode()
    return caught.value.message


@pytest.mark.parametrize("what", SPOILT)
async def test_a_broken_scenario_is_named_and_hides_no_other(scenario: Make, what: str) -> None:
    name, spoil, message = SPOILT[what]
    scenario(name="good")
    bad = scenario(name="bad")
    spoil(bad / name)
    said = await told(bad.parent, "bad")
    assert said.startswith("Scenario bad is not usable: ")
    assert re.search(message, said), said
    found = [str(each) for each in problems(bad.parent) if each.severity == "error"]
    assert any(re.search(f"^bad/.*{message}", each) for each in found), found


IN_ENVIRONMENT: Mapping[str, tuple[str, Spoil, str]] = {
    "a file without end": ("environment/x", sparse, "environment/: has 5,368,709,135 bytes, and a devbox's disk"),
    "a Dockerfile without end": ("environment/Dockerfile", sparse, "environment/Dockerfile: has 5,368,709,120 bytes"),
    "a pipe": ("environment/p", pipe, "environment/p: is a pipe"),
    "a pipe for a Dockerfile": ("environment/Dockerfile", pipe, "environment/Dockerfile: is a pipe"),
    "a circle": ("environment/c", link("c"), "environment/c: is a link to c, which goes round in a circle"),
    "a Latin-1 name": ("environment/x", latin1, r"environment/caf\xe9.txt: has a name that is not UTF-8"),
}


@pytest.mark.parametrize("what", IN_ENVIRONMENT)
async def test_a_broken_environment_is_refused_a_build(scenario: Make, what: str) -> None:
    name, spoil, message = IN_ENVIRONMENT[what]
    bad = scenario(name="bad")
    spoil(bad / name)
    started = time.monotonic()
    catalog = Catalog([bad.parent])
    view = await catalog.scenario(identify("scn", "bench/bad"))
    assert view is not None
    blueprint = await catalog.blueprint(view["environment"]["blueprint_id"])
    assert blueprint is not None
    assert [str(each) for each in blueprint.refusals if message in str(each)], blueprint.refusals
    assert time.monotonic() - started < 2, "in under a second"


async def test_a_folder_whose_name_is_not_utf_8_is_listed_and_named(scenario: Make) -> None:
    scenario(name="good")
    name = os.fsdecode(b"caf\xe9")
    bad = scenario(name="bad").rename(scenario(name="bad").with_name(name))
    said = await told(bad.parent, name)
    assert r"Scenario caf\xe9 is not usable: the folder has a name that is not UTF-8" in said
    assert any(each.file == r"caf\xe9/" for each in problems(bad.parent))


async def test_a_benchmark_whose_name_is_not_utf_8_needs_another_name(scenario: Make, write: Write) -> None:
    scenario(benchmark="whole")
    other = scenario(benchmark="other").parent
    odd = other.rename(other.with_name(os.fsdecode(b"caf\xe9")))
    catalog = Catalog([odd.parent])
    assert [each.name for each in await catalog.benchmarks()] == ["whole"]
    assert r"the folder's name caf\xe9 cannot stand for it" in str(problems(odd)[0])
    write(odd, {"benchmark.toml": 'name = "cafe"\n'})
    assert [each.name for each in await catalog.benchmarks()] == ["cafe", "whole"]
    assert problems(odd) == []


async def test_links_in_a_circle_beside_scenarios_hide_none_of_them(scenario: Make) -> None:
    bench = scenario(name="good").parent
    (bench / "circle").symlink_to("circle")
    (bench / "up").symlink_to("..")
    (benchmark,) = await Catalog([bench]).benchmarks()
    assert len(benchmark.scenario_ids) == 1


@pytest.mark.parametrize("spoil", [pipe, sparse, link("benchmark.toml")])
async def test_a_benchmark_file_that_cannot_be_read_is_that_benchmarks_mistake(scenario: Make, spoil: Spoil) -> None:
    scenario(benchmark="whole")
    bench = scenario(benchmark="broken").parent
    spoil(bench / "benchmark.toml")
    assert [each.name for each in await Catalog([bench.parent]).benchmarks()] == ["whole"]
    assert any(each.file == "benchmark.toml" and each.severity == "error" for each in problems(bench))


@pytest.mark.parametrize("spoil", [pipe, sparse, link("half.sh")])
async def test_a_custom_scorers_script_that_cannot_be_read_is_named_by_its_key(
    scenario: Make, write: Write, spoil: Spoil
) -> None:
    bench = write(scenario().parent, {"benchmark.toml": '[custom_scorers]\nhalf = "half.sh"\n'})
    spoil(bench / "half.sh")
    (found,) = [each for each in problems(bench) if each.severity == "error"]
    assert (found.file, found.key) == ("benchmark.toml", "custom_scorers.half")
    assert "'half.sh' " in found.message


#: Says what an ordinary user hears of the scenarios of a benchmark, one a line.
ASK = """
import os, sys
from pathlib import Path
import anyio
from orchestrator.service.errors import BadRequest
from orchestrator.service.definitions.catalog import Catalog, problems

async def main():
    catalog = Catalog([Path(sys.argv[1])])
    (benchmark,) = await catalog.benchmarks()
    for identity in benchmark.scenario_ids:
        try:
            print((await catalog.scenario(identity))["name"], "is usable")
        except BadRequest as error:
            print(error.message)
    print(*problems(Path(sys.argv[1])), sep="\\n")

if os.geteuid() == 0:
    os.setuid(65534)
anyio.run(main)
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A place that an ordinary user can enter."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


@pytest.mark.parametrize("name", [".", "tests", "tests/test.sh", "instruction.md", "task.toml", "solution"])
def test_a_file_without_read_permission_is_that_scenarios_mistake(scenario: Make, public: Path, name: str) -> None:
    scenario(name="good")
    bench = shutil.copytree(scenario(name="bad").parent, public / "bench")
    (bench / "bad" / name).chmod(0)
    words = [sys.executable, "-c", ASK, str(bench)]
    asked = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    (bench / "bad" / name).chmod(0o755)
    lines = asked.stdout.splitlines()
    assert "good is usable" in lines, asked
    where = "" if name == "." else f"{name}: "
    assert any(
        line.startswith("Scenario bad ") and f"{where}cannot be read: Permission denied" in line for line in lines
    )
    assert any(line.startswith("bad/") and f"{where}cannot be read: Permission denied" in line for line in lines)


TOO_MUCH: Mapping[str, tuple[str, str]] = {
    "three hundred thousand keys": ("\n".join(f"k{n}=1" for n in range(300_000))[:MAX_TOML], "more than 20,000 keys"),
    "as many tables": ("\n".join(f"[t{n}]" for n in range(100_000)), "more than 20,000 keys"),
    "as many values": (f"a = [{'1,' * 200_000}]", "more than 20,000 keys"),
    "a key of many parts": (f"x = 1\n{'a.' * 5000}a = 1", "line 2: has a key of more than 32 parts"),
    "a table of many parts": (f"[{'a.' * 5000}a]", "line 1: has a key of more than 32 parts"),
    "lists in lists": (f"a = {'[' * 5000}", "line 1: nests deeper than 32 levels"),
    "tables in tables": (f"a = {'{a = ' * 5000}", "line 1: nests deeper than 32 levels"),
    "a number of thousands of digits": (
        f"a = '''\n'''\nb = {'1' * 5000}",
        "line 3: has a number of more than 100 digits",
    ),
    "its brother in hexadecimal": (f"[agent]\nt = 0x{'f' * 5000}", "agent.t: is a whole number of more than 64 bits"),
    "one more than fits": ("a = [{b = 9223372036854775808}]", r"a[0].b: is a whole number of more than 64 bits"),
    "a character that ends texts": ('env = {A = "a\\u0000b"}', "env.A: has a character NUL"),
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_absurd_toml_is_refused_quickly_by_line_or_key(what: str) -> None:
    text, message = TOO_MUCH[what]
    started = time.monotonic()
    with pytest.raises(TomlError) as caught:
        parse_toml(text.encode())
    assert message in f"{caught.value.key}: {caught.value}"
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "text",
    [
        f'a = "{"a." * 5000}"',
        "a = '" + "[" * 5000 + "'",
        'a = """\n' + "a.b.c = [[[ \n" * 5000 + '\\""" still text"""',
        "a = '''" + "=,[." * 9000 + "'''''",
        f"# {'a.' * 5000} {'[' * 5000}\na = 1",
        'a = """ends with quotes"""""\nb = [1, "x", "[[[[[["]',
        "\n".join(f"[t{n}.a.b.c.d.e.f.g]\nx = {n}.5" for n in range(500)),
    ],
)
def test_texts_and_comments_may_hold_anything(text: str) -> None:
    assert parse_toml(text.encode())


@pytest.mark.parametrize("key", ["agent.timeout_sec", "verifier.timeout_sec", "environment.memory_mb"])
def test_a_number_that_would_overflow_is_refused_by_its_key(scenario: Make, key: str) -> None:
    section, name = key.split(".")
    place = scenario({"task.toml": f"[{section}]\n{name} = 1e300\n"})
    found = {each.key: each.message for each in problems(place) if each.severity == "error"}
    assert found == {key: "expected a number up to 1,000,000,000, got 1e+300"}


def test_a_message_shows_the_beginning_of_a_value_and_no_control_characters(scenario: Make) -> None:
    task = f'[agent]\ntimeout_sec = "{"x" * 100_000}"\n"\\u001b]0;title\\u0007" = 1\n'
    found = [str(each) for each in problems(scenario({"task.toml": task}))]
    assert all(len(each) < 300 for each in found)
    assert any(r"agent.\x1b]0;title\x07: unknown key, ignored" in each for each in found)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    with pytest.raises(Unfit, match="is not a file"):
        read_file(tmp_path / "p", 10)
    (tmp_path / "f").write_bytes(b"12345678901")
    with pytest.raises(Unfit, match="has 11 bytes; at most 10 are read"):
        read_file(tmp_path / "f", 10)
    assert read_file(tmp_path / "f", 11) == b"12345678901"


@pytest.mark.parametrize(("pattern", "name"), [("*a" * 40 + "b", "a" * 250), ("**/a/" * 40 + "b", "a/" * 30 + "c")])
def test_patterns_with_many_stars_are_matched_in_no_time(tmp_path: Path, pattern: str, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    files, started = listing(tmp_path, tmp_path), time.process_time()
    kept = BuildContext(files, Contents(), ignore=pattern)
    assert (len(kept), time.process_time() - started < 1) == (len(files.nodes), True)


def test_an_ignore_file_of_thousands_of_patterns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than 1,000 patterns"):
        BuildContext(listing(tmp_path, tmp_path), Contents(), ignore="a\n" * 2000)


def test_a_file_that_agent_and_tests_share_is_found_without_reading_what_differs_in_size(scenario: Make) -> None:
    same = "The answer to all of it, word for word.\n" * 2
    place = scenario({"environment/notes": same, "tests/expected": same})
    sparse(place / "environment" / "large")
    assert ("tests/expected", "the agent finds this file in its environment, as environment/notes") in {
        (each.file, each.message) for each in problems(place)
    }
