"""Hosts that devboxes reach in a sweep: those of the agent's file and the scenario, unless --network says otherwise."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Final

import pytest

from .conftest import write_scenario

if TYPE_CHECKING:
    from .conftest import Desk

pytestmark = pytest.mark.slow

AGENT: Final = """\
run = '''curl -sS http://127.0.0.1:{named}/ || true; curl -sS http://127.0.0.1:{other}/ || true; touch done'''
[network]
hosts = ["127.0.0.1:{named}"]
"""


class _Greeting(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"greeted by {self.connection.getsockname()[1]}\n".encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing."""


@pytest.fixture
def ports() -> Iterator[list[int]]:
    """Two servers on loopback."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Greeting) for _ in range(2)]
    for server in servers:
        Thread(target=server.serve_forever, daemon=True).start()
    yield [server.server_address[1] for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def curious(desk: "Desk", ports: list[int]) -> "Desk":
    """A scenario, and an agent that asks two ports of the host and names one."""
    named, other = ports
    write_scenario(desk.folder / "mine" / "one")
    (desk.folder / "curious.toml").write_text(AGENT.format(named=named, other=other))
    return desk


def greeted(desk: "Desk", *options: str) -> tuple[str, str]:
    """The agent's log, and the text on the screen."""
    ended = desk.sweep("run", "mine", "--agent", "./curious.toml", *options)
    (result,) = desk.results(ended.folder)
    return desk.log(ended.folder, result), ended.out


def test_an_agent_reaches_what_its_file_names(curious: "Desk", ports: list[int], isolation: str) -> None:
    if isolation != "local":
        pytest.skip("no sandboxes here")
    named, other = ports
    seen, said = greeted(curious)
    assert f"greeted by {named}" in seen
    assert f"greeted by {other}" not in seen
    assert "--network" not in said
    (log,) = curious.folder.glob("runs/*/trials/**/devbox.log")
    assert f"network: reached 127.0.0.1:{named}" in log.read_text()


def test_none_closes_and_host_opens_and_says_so(curious: "Desk", ports: list[int], isolation: str) -> None:
    if isolation != "local":
        pytest.skip("no sandboxes here")
    assert "greeted" not in greeted(curious, "--network", "none", "--name", "closed")[0]
    seen, said = greeted(curious, "--network", "host", "--name", "opened")
    assert all(f"greeted by {port}" in seen for port in ports)
    assert "--network host: agents reach everything that their devbox's host reaches." in said
    again = curious.refused("run", "mine", "--agent", "./curious.toml", "--name", "opened")
    assert 'network was "host" and is now "agent"' in again


def test_without_walls_hosts_are_left_as_they_are_and_none_is_refused(curious: "Desk", ports: list[int]) -> None:
    options = ("--isolation", "none")
    seen, _ = greeted(curious, *options)
    assert all(f"greeted by {port}" in seen for port in ports)
    refused = curious.start("run", "mine", "--agent", "./curious.toml", "--network", "none", *options).end()
    assert refused.status == 2
    assert "--network none cannot be had of this endpoint" in refused.err
    assert "devboxes without isolation cannot be kept from the network" in refused.err


def test_hosts_of_a_scenario_are_added_to_the_agents(curious: "Desk", ports: list[int], isolation: str) -> None:
    if isolation != "local":
        pytest.skip("no sandboxes here")
    task = curious.folder / "mine/one/task.toml"
    named = f'network_mode = "allowlist"\nallowed_hosts = ["localhost:{ports[1]}"]\n'
    task.write_text(task.read_text().replace("allow_internet = false\n", named))
    seen, _ = greeted(curious)
    assert all(f"greeted by {port}" in seen for port in ports)
    said = curious.sweep("run", "mine", "--agent", "nop", "--name", "told").out
    assert f"These scenarios ask for access to hosts: one (localhost:{ports[1]})." in said


def test_a_scenario_that_names_no_network_has_the_internet_which_ends_at_this_machine(
    curious: "Desk", ports: list[int], isolation: str
) -> None:
    if isolation != "local":
        pytest.skip("no sandboxes here")
    task = curious.folder / "mine/one/task.toml"
    task.write_text(task.read_text().replace("allow_internet = false\n", ""))
    everywhere = " ".join(
        f"http://{host}:{ports[0]}/" for host in ("127.0.0.1", "localhost", "127.1", "[::1]", "0x7f.1")
    )
    agent = f"command:curl -sS -m 9 --noproxy '*' {everywhere}; curl -sS -m 9 --noproxy '' -p {everywhere}; touch done"
    told = "These scenarios have internet access: one. `--network none` closes it."
    assert told in curious.sweep("run", "mine", "--agent", agent, "--dry-run").out
    ended = curious.sweep("run", "mine", "--agent", agent, "--name", "public")
    (result,) = curious.results(ended.folder)
    seen = curious.log(ended.folder, result)
    assert told in ended.out
    assert "greeted" not in seen
    is_proxied = result["network"]["reached"] == {}
    assert is_proxied == ("Devboxes reach the internet by a proxy, for HTTP and HTTPS alone" in ended.out)
    assert is_proxied == ("403" in seen)
    opened = curious.sweep("run", "mine", "--agent", agent, "--name", "open", "--network", "host")
    assert f"greeted by {ports[0]}" in curious.log(opened.folder, curious.results(opened.folder)[0])
    assert told not in opened.out
