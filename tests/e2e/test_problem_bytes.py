"""Any problem statement reaches an agent in a devbox byte for byte, as a file and on stdin.

Through all that lies in between: the wire, the client, the workspace, the devbox's own shell.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import example, given, settings
from hypothesis import strategies as st
from runloop_api_client import AsyncRunloop

from orchestrator.agentkit.agent import Task
from orchestrator.agentkit.loader import load
from orchestrator.core.protocol import Isolation
from orchestrator.endpoint.gateway import Gateway
from orchestrator.engine.workspace import DevboxWorkspace
from orchestrator.service.server import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from orchestrator.core.records import Devbox
    from orchestrator.service.address import Address

pytestmark = pytest.mark.slow

AGENT: Final = 'command:cat >"$HOME/by-stdin" && cat "$SWEEP_PROBLEM_FILE" >"$HOME/by-file"'
SCORER: Final = {"type": "bash_script_scorer", "bash_script": "echo score=0.0"}
CONTRACT: Final[Any] = {"scoring_function_parameters": [{"name": "it", "weight": 1.0, "scorer": SCORER}]}
#: What a shell would take for its own, if it ever saw it.
PIECES: Final = st.sampled_from(
    ["'", '"', "`", "$HOME", "${x:-y}", "$(id)", "\\", "\n", "\r\n", "\t", "!", "EOF\n", "%s", "-n ", "~/", "*", "\0"]
)
STATEMENTS: Final = st.one_of(
    st.lists(PIECES | st.text(max_size=5)).map("".join),
    st.binary().map(lambda data: data.decode(errors="surrogateescape")),
    st.tuples(st.text(min_size=1, max_size=20), st.integers(1, 200_000)).map(lambda each: (each[0] * each[1])[:50_000]),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A service, a client and one devbox, for many statements. Each gets a home of its own in it."""

    portal: BlockingPortal
    client: AsyncRunloop
    gateway: Gateway
    devbox: Devbox
    folder: Path
    numbers: Iterator[int]

    def travels(self, statement: str) -> str:
        """A statement from the author of a scenario to its user."""
        return self.portal.call(self._travel, statement)

    def arrives(self, statement: str) -> tuple[bytes, bytes]:
        """The bytes that an agent finds on stdin and in the file."""
        return self.portal.call(self._solve, statement)

    async def _travel(self, statement: str) -> str:
        made = await self.client.scenarios.create(
            name="words", input_context={"problem_statement": statement}, scoring_contract=CONTRACT
        )
        return (await self.gateway.scenario(made.id)).prompt

    async def _solve(self, statement: str) -> tuple[bytes, bytes]:
        number = next(self.numbers)
        home = f"{self.devbox.home}/{number}"
        workspace = DevboxWorkspace(
            self.gateway,
            replace(self.devbox, home=home),
            working_directory="/",
            key=lambda step: f"{number}-{step}",
            announce=_unheard,
            keep=lambda _offset, _length: None,
            log=self.folder / f"{number}.log",
        )
        agent = load(AGENT.replace("$HOME", home), python=None, search=(), settings={}, environ={})
        result = await agent.solve(self._task(statement), workspace, lambda _: None)
        assert (result.exit_status, result.message) == (0, "")
        by_stdin = await workspace.read(f"{home}/by-stdin", at_most=1 << 20)
        return by_stdin, await workspace.read(f"{home}/by-file", at_most=1 << 20)

    def _task(self, statement: str) -> Task:
        return Task(
            scenario_id="scn_1",
            scenario_name="words",
            prompt=statement,
            time_limit=60,
            folder=self.folder,
            log=self.folder / "none.log",
            devbox_id=self.devbox.id,
            endpoint=self.gateway.url,
        )


def _unheard(_execution: str) -> None:
    """Nobody resumes this."""


@asynccontextmanager
async def connected(address: Address) -> AsyncIterator[tuple[AsyncRunloop, Gateway, Devbox]]:
    async with (
        AsyncRunloop(bearer_token=address.token, base_url=address.url) as client,
        Gateway.open(address.url, address.token, rate=None) as gateway,
    ):
        made = await client.devboxes.create(name="words")
        yield client, gateway, await gateway.wait_running(made.id)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, isolation: str) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("bytes")
    kind = Isolation.LOCAL if isolation == "local" else Isolation.NONE
    with start_blocking_portal() as portal:
        serving, address = portal.start_task(partial(serve, "127.0.0.1", 0, None, folder / "state", [], kind, None))
        with portal.wrap_async_context_manager(connected(address)) as (client, gateway, devbox):
            yield Bench(portal=portal, client=client, gateway=gateway, devbox=devbox, folder=folder, numbers=count(1))
        serving.cancel()


@pytest.mark.slow
@settings(max_examples=60)
@given(STATEMENTS)
@example("")
@example("\0")
@example("no newline at the end")
@example("\ufeff\u2028\x85\x1b[31m")
@example("caf\udce9 \udcff\udc80")
@example("é$(touch x)'" * 18_000)
def test_a_statement_arrives_byte_for_byte(bench: Bench, statement: str) -> None:
    """Bytes that were no UTF-8 at their source have no way through JSON; from there on they arrive as they were."""
    expected = statement.encode(errors="surrogateescape")
    assert bench.arrives(statement) == (expected, expected)
    if statement.strip() and expected == statement.encode(errors="replace"):  # a blank one is no scenario's
        assert bench.travels(statement) == statement


def test_half_of_a_pair_is_no_text_and_no_failure(bench: Bench) -> None:
    """JSON can say it in its escapes, and an endpoint may."""
    by_stdin, by_file = bench.arrives("half \ud83d of it")
    assert by_stdin == by_file
    assert by_file.startswith(b"half ")
