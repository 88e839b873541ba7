"""A service whose disk is full for a while, its log on it too: run as a program, in a mount namespace of its own.

python -m tests.service.full_disk FOLDER      FOLDER is an empty tmpfs of 40 MiB
"""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx

from orchestrator.common.address import Address
from tests.waiting import wait_until

TOKEN = "a-key-for-our-tests"
#: Seconds in which every request is answered, one way or the other.
AT_ONCE = 10.0


def fill(folder: Path) -> None:
    """Leave no room at all."""
    with suppress(OSError), (folder / "filler").open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while file.write(b"\0" * size):
                    pass


def booted(http: httpx.Client) -> str:
    made = http.post("/v1/devboxes/create_and_await_running", json={})
    assert (made.status_code, made.json()["status"]) == (200, "running"), made.text
    return str(made.json()["id"])


def said(http: httpx.Client, devbox: str, command: str) -> str:
    answer = http.post(f"/v1/devboxes/{devbox}/execute", json={"command": command, "command_id": command})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["stdout"])


def attempts(http: httpx.Client, devbox: str, round_: int) -> list[int]:
    """The statuses of all kinds of requests; each is answered in time, or this fails."""
    command = {"command": "true", "command_id": f"full {round_}"}
    answers = [
        http.post("/v1/devboxes", json={}),
        http.post("/v1/benchmarks", json={"name": "b"}),
        http.post(f"/v1/devboxes/{devbox}/execute", json=command),
        http.post(f"/v1/devboxes/{devbox}", json={"name": f"{round_}"}),
    ]
    for answer in answers:
        assert answer.status_code in {200, 503}, answer.text
        assert answer.is_success or "cannot write its state" in answer.json()["message"]
    assert http.get("/v1/devboxes").status_code in {200, 503}
    return [answer.status_code for answer in answers]


def play(folder: Path, http: httpx.Client) -> None:
    lasting = booted(http)
    assert said(http, lasting, "echo before >~/note; cat ~/note") == "before\n"
    fill(folder)
    rounds = 0
    while attempts(http, lasting, rounds) != [503] * 4:  # what SQLite has reserved may last for a few
        fill(folder)
        rounds += 1
        assert rounds < 500
    for _ in range(10):
        rounds += 1
        attempts(http, lasting, rounds)
    (folder / "filler").unlink()
    assert http.get(f"/v1/devboxes/{lasting}").json()["status"] == "running"
    assert said(http, lasting, "cat ~/note && echo after") == "before\nafter\n"
    fresh = booted(http)
    assert said(http, fresh, "echo fresh") == "fresh\n"


def main(folder: Path) -> None:
    state, log = folder / "state", folder / "service.log"
    words = ["serve", "--state", str(state), "--port", "0", "--token", TOKEN, "--isolation", "none"]
    with log.open("wb") as file:
        service = subprocess.Popen([sys.executable, "-m", "orchestrator", *words], stdout=file, stderr=file)
    try:
        address = wait_until(lambda: Address.read(state), "it does not serve")
        headers = {"authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=address.url, headers=headers, timeout=AT_ONCE, trust_env=False) as http:
            play(folder, http)
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0
    finally:
        service.kill()
    assert "store.writable_again" in log.read_text(errors="replace")


main(Path(sys.argv[1]))
