"""`sweep serve --chaos` and `--foreign`, as typed."""

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.abc import Process

from orchestrator.common.address import Address
from orchestrator.testing.chaos.requests import HEADER
from orchestrator.testing.chaos.rules import FAULTS, read_rules
from tests.waiting import until

pytestmark = pytest.mark.anyio

SERVE = (sys.executable, "-m", "orchestrator", "serve", "--port", "0", "--isolation", "none", "--state")


@asynccontextmanager
async def served(state: Path, *words: str) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    """The command under way, what it says in the file `said` beside its state, and a client of it."""
    with (state.parent / "said").open("wb") as said:
        command = (*SERVE, str(state), *words)
        async with await anyio.open_process(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said) as process:
            try:
                address = await until(lambda: Address.read(state), "it does not serve")
                headers = {"authorization": f"Bearer {address.token}"}
                async with httpx.AsyncClient(
                    base_url=address.url, headers=headers, timeout=60, trust_env=False
                ) as client:
                    yield process, client
            finally:
                if process.returncode is None:
                    process.kill()


async def test_the_start_says_that_chaos_is_on_and_the_end_holds_nobody_up(tmp_path: Path) -> None:
    """Even a quiet start. At the end what hangs is closed, what is late comes at once, and nobody makes a fuss."""
    (tmp_path / "chaos.toml").write_text("seed = 7\n[[rules]]\nfault = 'hang'\nroute = 'GET /v1/devboxes'\n")
    ends: list[object] = []
    async with served(tmp_path / "state", "--chaos", str(tmp_path / "chaos.toml"), "--quiet") as (process, client):

        async def ask(path: str, fault: str) -> None:
            try:
                ends.append((await client.get(path, headers={HEADER: fault} if fault else {})).status_code)
            except httpx.TransportError as error:
                ends.append(type(error))

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, "/v1/devboxes", "")
                tasks.start_soon(ask, "/v1/benchmarks", "late=60")
                said = tmp_path / "said"
                await until(lambda: said.read_text().count("chaos.injected") == 2, "no faults")
                # What is late is told before it is read, and reading takes turns: this one comes after it.
                assert (await client.get("/v1/benchmarks")).status_code == 200
                process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    assert sorted(map(str, ends)) == ["200", str(httpx.RemoteProtocolError)]
    words = said.read_text()
    assert "Traceback" not in words
    assert '"rules":1,"seed":7,"event":"chaos.on"' in words


async def test_foreign_and_chaos_go_together(tmp_path: Path) -> None:
    (tmp_path / "chaos.toml").touch()
    async with served(tmp_path / "state", "--chaos", str(tmp_path / "chaos.toml"), "--foreign") as (_, client):
        assert (await client.get("/v1/sweep")).status_code == 404
        assert (await client.get("/v1/benchmarks", headers={HEADER: "503"})).status_code == 503


async def test_a_bad_file_is_one_line_and_misuse(tmp_path: Path) -> None:
    (tmp_path / "chaos.toml").write_text("[[rules]]\nfault = 'drp'\n")
    command = (*SERVE, str(tmp_path / "state"), "--chaos", str(tmp_path / "chaos.toml"))
    ended = await anyio.run_process(command, check=False)
    assert ended.returncode == 2
    assert ended.stderr.decode().splitlines() == [
        f"sweep: --chaos {tmp_path}/chaos.toml, line 2: rules.1.fault: unknown fault 'drp'; did you mean drop?"
    ]
    assert not (tmp_path / "state").exists()


async def test_the_help_teaches_a_file_that_can_be_read(tmp_path: Path) -> None:
    ended = await anyio.run_process((*SERVE[:4], "--help"))
    text = ended.stdout.decode()
    example = text[text.index("seed = ") : text.index("To requests")]
    (tmp_path / "chaos.toml").write_text(example)
    assert [rule.fault for rule in read_rules(tmp_path / "chaos.toml").rules] == ["429", "dies-solving"]
    assert [fault for fault in FAULTS if fault not in text] == []
