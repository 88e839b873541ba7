"""Mistakes of a person cost nothing and are answered by one line that says how to correct them."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from .conftest import KEY, new_desk, write_scenario, write_shelf

if TYPE_CHECKING:
    from .conftest import Desk, Running, Service

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mistakes")]


@dataclass(frozen=True, slots=True)
class Unanswered:
    url: str
    running: "Running"
    began: float


@pytest.fixture(scope="module", autouse=True)
def unanswered(tmp_path_factory: pytest.TempPathFactory, isolation: str) -> Iterator[Unanswered]:
    """A command at an endpoint that refuses connections: it waits beside the other tests, for that takes a while."""
    desk = new_desk(tmp_path_factory.mktemp("unanswered"), isolation)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, and not listening
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        command = ("run", "six", "--agent", "nop", "--endpoint", url)
        running = desk.start(*command, environment={"RUNLOOP_API_KEY": KEY})
        yield Unanswered(url, running, time.monotonic())
    desk.clear()


def test_a_name_with_a_typo_is_answered_with_the_near_one_before_anything_starts(served: "Desk") -> None:
    """Of a benchmark, bundled or of the endpoint, an agent, a scenario or a sweep."""
    run = ("run", "six", "--agent", "oracle")
    bundled = {"environment": {"RUNLOOP_BASE_URL": ""}}
    assert "bugfix-mini?" in served.refused("run", "bugfix-mni", "--agent", "nop", "--isolation", "none", **bundled)
    assert "bugfix-mini?" in served.refused("check", "bugfix-mni", "--isolation", "none", **bundled)
    assert "Did you mean six?" in served.refused("run", "sx", "--agent", "nop")
    assert "Did you mean oracle?" in served.refused("run", "six", "--agent", "orcale")
    assert "Did you mean ant?" in served.refused(*run, "--include", "ent")
    assert "Did you mean bee" in served.refused("scenario", "run", "beee", "--benchmark", "six", "--agent", "nop")
    assert not list(served.folder.glob("runs/*/journal.jsonl"))
    served.sweep(*run, "--limit", "1", "--name", "mine")
    for command in ("resume", "attach", "stop"):
        assert "Did you mean mine?" in served.refused(command, "mien")


def test_a_token_that_could_be_guessed_is_refused_before_anything_is_served(served: "Desk") -> None:
    words = ["serve", "--port", "0", "--state", "guessable"]
    assert "at least 16" in served.refused(*words, "--token", "fifteen-letters")
    assert "at least 16" in served.refused(*words, environment={"SWEEP_TOKEN": "fifteen-letters"})
    assert not (served.folder / "guessable").exists()


def test_a_key_with_a_typo_in_a_settings_file_is_named_with_its_file_and_the_near_key(desk: "Desk") -> None:
    (desk.folder / "sweep.toml").write_text('trails = 3\narms = [{ agnet = "nop" }]\n[timeouts]\nslove = 3\n')
    line = desk.refused("run", "bugfix-mini", "--config", "sweep.toml")
    for words in ("sweep.toml", "'trails'; did you mean 'trials'?", "agnet", "'timeouts.slove'; did you mean 'solve'?"):
        assert words in line


def test_a_settings_file_or_folder_that_is_not_there_is_named(desk: "Desk") -> None:
    assert "no.toml" in desk.refused("run", "bugfix-mini", "--agent", "nop", "--config", "no.toml")
    assert "no-such" in desk.refused("run", "./no-such", "--agent", "nop")
    assert "no-such" in desk.refused("check", "./no-such")


def test_a_sweep_without_an_agent_or_a_benchmark_is_refused_with_an_example(desk: "Desk") -> None:
    assert "--agent oracle" in desk.refused("run", "bugfix-mini")
    assert "benchmark" in desk.refused("run", "--agent", "nop")


@pytest.mark.parametrize(
    "words",
    [
        ["--rate", "abc"],
        ["--trials", "0"],
        ["--devboxes", "many"],
        ["--no-such-option"],
        ["--timeout-solve", "0"],
        ["--name", "../elsewhere"],
        ["--deadline", "soon"],
        ["--drain", "10 minutes"],
        ["--max-cost", "0"],
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(served: "Desk", words: list[str]) -> None:
    ended = served.sweep("run", "six", "--agent", "nop", *words, status=2)
    name = words[0].removeprefix("--").removeprefix("timeout-")
    assert name in ended.err.replace("_", "-"), str(ended)
    assert not ended.out, str(ended)


def test_an_endpoint_without_a_key_says_which_variable_to_set(desk: "Desk", service: "Service") -> None:
    line = desk.refused("run", "six", "--agent", "nop", "--endpoint", service.url)
    assert "RUNLOOP_API_KEY" in line


def test_a_wrong_key_says_so(desk: "Desk", service: "Service") -> None:
    environment = {"RUNLOOP_API_KEY": "wrong"}
    line = desk.refused("run", "six", "--agent", "nop", "--endpoint", service.url, environment=environment)
    assert "RUNLOOP_API_KEY" in line
    assert "wrong" not in line


class Elsewhere(BaseHTTPRequestHandler):
    """A web server that is no benchmark service."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_endpoint_without_benchmark_routes_says_what_became_of_them(desk: "Desk", elsewhere: str) -> None:
    line = desk.refused("benchmarks", "list", "--endpoint", elsewhere, environment={"RUNLOOP_API_KEY": KEY})
    assert elsewhere in line
    assert "does not serve benchmarks" in line
    assert "leave out --endpoint" in line


def test_a_folder_and_an_endpoint_together_are_refused(served: "Desk") -> None:
    write_scenario(served.folder / "mine" / "one")
    assert "leave out --endpoint" in served.refused("run", "./mine", "--agent", "nop")


def test_a_folder_without_scenarios_says_what_a_scenario_is(desk: "Desk") -> None:
    (desk.folder / "empty").mkdir()
    assert "task.toml" in desk.refused("run", "./empty", "--agent", "nop")


def test_a_broken_definition_is_named_wherever_scenarios_are_and_never_left_out_unsaid(desk: "Desk") -> None:
    write_scenario(desk.folder / "mine" / "good")
    broken = write_scenario(desk.folder / "mine" / "broken")
    (broken / "task.toml").write_text('version = "1.0"\n\n[verifier]\ntimeout_sec = "soon"\n')
    why = "task.toml: verifier.timeout_sec: expected a number above 0, got 'soon'"
    ended = desk.sweep("run", "./mine", "--agent", "oracle", "--include", "*", status=1)
    assert f"broken: {why}" in ended.out
    outcomes = {result["scenario_name"]: result["outcome"] for result in desk.results(ended.folder)}
    assert outcomes == {"good": "scored", "broken": "failed"}
    assert why in desk.sweep("benchmarks", "show", "./mine").out
    assert why in desk.refused("scenario", "run", "broken", "--benchmark", "./mine", "--agent", "oracle")


def test_a_runs_folder_that_cannot_be_written_is_named(desk: "Desk") -> None:
    (desk.folder / "runs").write_text("a file")
    assert "runs" in desk.refused("run", "bugfix-mini", "--agent", "nop")


def test_the_help_names_every_command(desk: "Desk") -> None:
    ended = desk.sweep("--help")
    for command in ("run", "check", "serve", "benchmarks", "scenario"):
        assert command in ended.out


def test_an_endpoint_that_refuses_connections_is_given_up_in_bounded_time(unanswered: Unanswered) -> None:
    ended = unanswered.running.end(max(1, unanswered.began + 60 - time.monotonic()))
    assert ended.status == 2, str(ended)
    (line,) = ended.err.splitlines()
    assert unanswered.url in line


def test_a_benchmark_file_that_cannot_be_read_is_named_with_what_is_wrong(desk: "Desk") -> None:
    write_shelf(desk.folder / "shelf")
    broken = desk.folder / "shelf" / "six"
    (broken / "benchmark.toml").write_text("name = ")
    assert f"{broken}: benchmark.toml: is not TOML: " in desk.refused("run", "shelf/six", "--agent", "nop")
    (broken / "benchmark.toml").unlink()
    os.mkfifo(broken / "benchmark.toml")
    assert f"{broken}: benchmark.toml: is not a file." in desk.refused("run", "shelf/six", "--agent", "nop")


def test_a_benchmark_whose_path_is_not_utf_8_is_refused(desk: "Desk") -> None:
    write_shelf(desk.folder / "shelf")
    odd = desk.folder / os.fsdecode(b"caf\xe9")
    (desk.folder / "shelf" / "six").rename(odd)
    said = desk.refused("run", "./" + odd.name, "--agent", "oracle")
    assert said.endswith(r"caf\xe9: the path is not UTF-8, as what is written of a sweep is: rename it.")
