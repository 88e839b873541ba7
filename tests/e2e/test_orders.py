"""Orders to a sweep that runs, typed in another terminal."""

import os
import socket
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from orchestrator.rundir.control_socket import SOCKET
from tests.waiting import wait_until

if TYPE_CHECKING:
    from .conftest import Desk, Service

pytestmark = pytest.mark.slow


def test_a_running_sweep_is_set_paused_and_told_what_to_leave(served: "Desk", service: "Service") -> None:
    """The orders are in the journal with who gave them and why; a resume keeps what was set."""
    gate = served.folder / "go"
    # The folder's path is longer than the address of a socket may be.
    deep = served.folder / "/".join(["quite-a-deep-folder"] * 6)
    words = ("run", "six", "--agent", "./gated.py:agent", "--devboxes", "2", "--name", "mine", "--runs", str(deep))
    (served.folder / "gated.py").write_text(
        "import pathlib, time\n"
        "def agent(prompt, workspace):\n"
        f"    while not pathlib.Path({str(gate)!r}).exists():\n"
        "        time.sleep(0.05)\n"
        "    workspace.exec('touch done')\n"
    )
    running = served.start(*words)
    folder = f"{deep}/mine"
    wait_until(lambda: len(served.journal(folder, "agent.started")) == 2, running)

    assert served.sweep("pause", folder, "--reason", "lunch").out == "mine: paused; 2 trials in flight go on.\n"
    assert served.sweep("set", folder, "devboxes=3", "max-cost=50").out.startswith(
        "mine: set devboxes 3 (was 2), max-c"
    )
    first, last = sorted({result["name"] for result in manifest(served, folder)["scenarios"].values()})[::5]
    assert "canceled 1 trial" in served.sweep("cancel", folder, last, "--reason", "hangs").out
    gate.touch()
    wait_until(lambda: len(served.results(folder)) == 3, running)
    assert served.refused("set", folder, "devboxes=x") == "sweep: devboxes=x: must be a whole number."
    assert "Did you mean" in served.refused("cancel", folder, first[:-1])
    served.sweep("requeue", folder, first)
    assert served.sweep("unpause", folder).out == "mine: going on.\n"
    ended = running.end()

    assert ended.status == 1, "a canceled trial has no score"
    assert "Paused; 2 trials in flight go on, by " in ended.out
    assert f"`sweep unpause {folder}` goes on" in ended.out
    results = {result["scenario_name"]: result for result in served.results(folder)}
    assert [each["failure"] and each["failure"]["class"] for each in results.values()].count("Canceled") == 1
    assert results[last]["failure"]["message"].endswith(": hangs")
    assert results[first]["score"] == 1.0
    given = served.journal(folder, "order.given")
    assert [event["order"] for event in given] == ["pause", "set", "cancel", "requeue", "unpause"]
    assert given[0]["reason"] == "lunch"
    assert manifest(served, folder)["config"]["devboxes"] == 3
    assert not (deep / "mine" / SOCKET).exists()
    assert not service.alive()
    assert "mine is not running: `sweep resume" in served.refused("pause", folder)


def manifest(desk: "Desk", folder: str) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((desk.folder / folder / "manifest.json").read_bytes())
    return found


def test_nonsense_on_the_socket_harms_nobody(served: "Desk") -> None:
    running = served.start("run", "six", "--agent", "command:exec sleep 1000", "--limit", "1", "--name", "mine")
    wait_until(lambda: served.journal("runs/mine", "execution.started"), running)
    here = os.open(served.folder / "runs/mine", os.O_PATH)
    try:
        for nonsense in (b"", b"{}\n", b"\xff\n", b'{"order":"dance"}\n', b"x" * 100_000, b'{"order":"pause","x":1}\n'):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(f"/proc/self/fd/{here}/{SOCKET}")
                connection.settimeout(20)
                try:
                    connection.sendall(nonsense)
                    connection.shutdown(socket.SHUT_WR)
                    answer = connection.makefile("rb").readline()
                except (BrokenPipeError, ConnectionResetError):
                    answer = b""
                assert not answer or b"refused" in answer
    finally:
        os.close(here)
    assert served.sweep("pause", "mine").out == "mine: paused; 1 trial in flight goes on.\n"
    running.interrupt()
    running.wait_for("Press Ctrl-C again")
    running.interrupt()
    assert running.end().status == 130
