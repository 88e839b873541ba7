"""Agents that work on this machine and reach their devbox from here: programs, Python classes, and their tools."""

import shlex
import sys
import textwrap
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import carrying
from tests.waiting import wait_until

if TYPE_CHECKING:
    from .conftest import Desk


pytestmark = pytest.mark.slow


def run_one(desk: "Desk", run: str, *words: str, more: str = "", status: int = 0) -> dict[str, Any]:
    """Run an agent file with `where = "host"` on one scenario; the line of its result."""
    text = f"where = 'host'\nrun = '''{textwrap.dedent(run)}'''\n{textwrap.dedent(more)}"
    (desk.folder / "mine.toml").write_text(text)
    desk.sweep("run", "six", "--agent", "./mine.toml", "--limit", "1", "--name", "mine", *words, status=status)
    (result,) = desk.results("runs/mine")
    return result


def test_a_program_works_in_its_devbox_with_the_helper(served: "Desk") -> None:
    """Exit status, both streams, standard input, files of any bytes, folders, and what is too late."""
    run = """
        sweep workspace exec 'pwd; echo err >&2; exit 7' 2>err; echo "$? $(cat err)"
        sweep workspace exec -e X="it's" -- printf '%s|%s\\n' "$HOME" 'a  b'
        sweep workspace exec 'echo $X'; sweep workspace exec -e X="it's" 'echo $X'
        printf 'one\\ntwo' | sweep workspace exec -i wc -c
        head -c 2000000 /dev/urandom >big; sweep workspace write sub/big <big; sweep workspace read sub/big | cmp - big
        mkdir -p f/g; echo 1 >f/g/a; sweep workspace upload f up; sweep workspace download up back; diff -r f back
        sweep workspace read nothing; echo $?
        sweep workspace exec --timeout 1 'sleep 600'; echo $?
        sweep workspace exec yes | head -1
        env -u SWEEP_DEVBOX_ID sweep workspace read x; echo $?
        sweep workspace exec 'touch done'
    """
    result = run_one(served, run)
    log = served.log("runs/mine", result).splitlines()
    home = log[2].partition("|")[0]
    assert log[:2] == ["/app", "7 err"]
    assert log[2:6] == [f"{home}|a  b", "", "it's", "7"]
    assert "nothing: cannot be read" in log[6]
    assert log[7:10] == ["1", "124", "y"]
    assert "SWEEP_DEVBOX_ID not set" in log[10]
    assert log[11:] == ["2"]
    assert (result["score"], result["flags"]) == (1.0, [])


def test_any_client_of_the_protocol_works_with_the_key_of_the_attempt_and_in_its_devbox_only(served: "Desk") -> None:
    (served.folder / "client.py").write_text(
        textwrap.dedent("""
        import os
        import runloop_api_client as runloop
        client, box = runloop.Runloop(), os.environ["SWEEP_DEVBOX_ID"]
        print(client.devboxes.retrieve(box).status)
        print(client.devboxes.execute_sync(box, command="touch /app/done; echo out").stdout)
        begun = client.devboxes.execute_async(box, command="for i in 1 2 3; do echo $i; sleep 0.1; done; exit 4")
        for chunk in client.devboxes.executions.stream_stdout_updates(begun.execution_id, devbox_id=box):
            print(chunk.output.split())
        ended = client.devboxes.wait_for_command(begun.execution_id, devbox_id=box, statuses=["completed"])
        print(ended.exit_status)
        client.devboxes.upload_file(box, path="/app/bytes", file=bytes(range(256)))
        assert client.devboxes.download_file(box, path="/app/bytes").read() == bytes(range(256))
        for forbidden in (lambda: client.devboxes.shutdown(box), client.devboxes.list, client.benchmarks.list,
                          lambda: client.devboxes.create(), lambda: client.devboxes.retrieve("dbx_other")):
            try:
                forbidden()
            except runloop.PermissionDeniedError:
                print("no")
        """)
    )
    python = shlex.quote(sys.executable)
    result = run_one(served, f"exec {python} -W ignore {served.folder}/client.py")
    lines = served.log("runs/mine", result).splitlines()
    assert (result["score"], result["flags"]) == (1.0, []), lines
    assert lines[:3] == ["running", "out", ""]
    assert "".join(lines[3:-6]).replace("][", ", ") == "['1', '2', '3']"
    assert lines[-6:] == ["4", *["no"] * 5]


def test_files_of_a_host_program_are_collected_and_its_usage_is_read(served: "Desk") -> None:
    run = """
        sweep workspace exec 'touch done'
        echo '{"used": 7, "end": "finished"}' >usage.json; echo words >report.md
    """
    more = """
        usage = { from = "usage.json", format = "json", input_tokens = "$.used", exit_reason = "$.end" }
        gather = { files = ["*.md"] }
    """
    result = run_one(served, run, more=more)
    assert (result["usage"], result["exit_reason"]) == ({"input_tokens": 7}, "finished")
    (report,) = (served.folder / "runs/mine" / result["files"]["artifacts"]).rglob("report.md")
    assert report.read_text() == "words\n"


def test_a_program_out_of_time_is_ended_with_all_it_started(served: "Desk") -> None:
    mark = uuid.uuid4().hex
    sleeper = f"python3 -c 'import time; time.sleep(600)' {mark}"
    run = f"sweep workspace exec 'touch done'\nsetsid {sleeper} </dev/null >/dev/null 2>&1 &\n{sleeper}"
    (served.folder / "mine.sh").write_text(run)
    result = run_one(served, f". {served.folder}/mine.sh", "--timeout-solve", "4", status=1)
    assert (result["score"], result["flags"]) == (1.0, ["agent_timed_out"])
    wait_until(lambda: not carrying(mark), lambda: f"left: {carrying(mark)}", seconds=5)


def test_a_sweep_that_is_killed_leaves_nothing_of_its_programs(desk: "Desk") -> None:
    mark = uuid.uuid4().hex
    sleeper = f"python3 -c 'import time; time.sleep(600)' {mark}"
    (desk.folder / "mine.sh").write_text(f"setsid {sleeper} </dev/null >/dev/null 2>&1 &\n{sleeper}")
    (desk.folder / "mine.toml").write_text(f"where = 'host'\nrun = '. {desk.folder}/mine.sh'\n")
    running = desk.start("run", "bugfix-mini", "--agent", "./mine.toml", "--limit", "1", "--name", "mine")
    wait_until(lambda: len(carrying(mark)) == 2, running)
    running.kill()
    wait_until(lambda: not carrying(mark), lambda: f"left: {carrying(mark)}", seconds=5)


def test_a_python_agent_streams_uploads_and_downloads_in_a_real_devbox(served: "Desk") -> None:
    (served.folder / "kit").mkdir()
    (served.folder / "kit" / "tool").write_text("#!/bin/sh\necho $0 ran with $WORD")
    (served.folder / "kit" / "tool").chmod(0o755)
    (served.folder / "mine.py").write_text(
        textwrap.dedent("""
        class MyAgent:
            def __init__(self, prompt, workspace, log):
                self.workspace, self.log = workspace, log
            def run(self):
                self.workspace.environment["WORD"] = "it's"
                self.workspace.upload("kit", "kit")
                for line in self.workspace.stream("kit/tool; echo err >&2; sleep 0.2; touch done; printf end; exit 3"):
                    self.log.info(line, n=1)
                for line in self.workspace.stream("echo first; sleep 600"):
                    break
                gone = self.workspace.exec("timeout 20 sh -c 'while pgrep -x sleep; do :; done' >/dev/null")
                self.log(line, gone.exit_status)
                self.workspace.download("kit", "back")
                self.log.usage(input_tokens=5)
                return {"exit_reason": "done"}
        """)
    )
    served.sweep("run", "six", "--agent", "./mine.py:MyAgent", "--limit", "1", "--name", "mine")
    (result,) = served.results("runs/mine")
    log = served.log("runs/mine", result).splitlines()
    assert (result["score"], result["usage"], result["exit_reason"]) == (1.0, {"input_tokens": 5}, "done"), log
    assert log == ["info: kit/tool ran with it's n=1", "info: err n=1", "info: end n=1", "first 0"]
    assert (served.folder / "back" / "tool").read_text().startswith("#!/bin/sh")
