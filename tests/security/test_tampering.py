"""Tampering of an agent with commands beside it in its own box: their output, status, files."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from orchestrator.service.sandbox.base_provider import AgentBox
from orchestrator.service.sandbox.commands import run, write_file
from orchestrator.service.sandbox.pipes import Drain, OutputPipe
from orchestrator.service.sandbox.provider import Command, shell
from orchestrator.service.scoring.scoring import InPlace, Scoring

pytestmark = pytest.mark.anyio
Boot = Callable[..., Awaitable[AgentBox]]
Ask = Callable[[AgentBox, str], Awaitable[str]]
#: Programs that write something else than they are told to, in a folder that the scenario put on the PATH.
PLANTS = (
    "mkdir -p /app/bin; cd /app/bin; printf '#!/bin/sh\\necho echo score=1\\n' > cat; cp cat sh; cp cat rm; chmod +x *"
)


async def test_commands_may_open_their_output_by_name(boot: Boot) -> None:
    done = await run(await boot(), shell("echo out > /dev/stdout; echo err > /dev/stderr"), timeout=10)
    assert (done.status, done.stdout, done.stderr) == (0, b"out\n", b"err\n")


async def test_output_that_another_process_in_the_box_took_is_not_waited_for() -> None:
    """The pipe is theirs too: a process left behind may read from it what was there when the program ended."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "wb", buffering=0) as left_behind:
        pipe = OutputPipe(reading, Drain())
        left_behind.write(b"x" * 1000)
        pipe.finish()
        with open(f"/proc/self/fd/{reading}", "rb", buffering=0) as thief:  # noqa: PTH123, ASYNC230
            thief.read(900)
        with anyio.fail_after(5):
            assert await pipe.receive() == b"x" * 100
            with pytest.raises(anyio.EndOfStream):
                await pipe.receive()


async def test_a_pipe_made_large_and_emptied_by_a_daemon_holds_nothing_up(boot: Boot) -> None:
    thief = """
import fcntl, os
taken = os.open("/proc/self/fd/1", os.O_RDONLY)
fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20)
me = os.getpid()
if os.fork() == 0:
    os.setsid()
    while os.path.exists(f"/proc/{me}/exe"):
        pass
    while os.read(taken, 1 << 16):
        pass
os.write(1, b"x" * (1 << 20))
"""
    done = await run(await boot(), Command(argv=("python3", "-c", thief)), timeout=20)
    assert done.status == 0


async def test_the_helper_that_reports_a_status_is_closed_to_other_commands(boot: Boot, tell: Ask) -> None:
    """Its exit status is the command's: a process that can trace it decides how a scorer ended."""
    box = await boot()
    victim = await box.spawn(Command(argv=("sleep", "1000")))
    code = """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    if open(f"/proc/{pid}/comm").read() == "agent\\n":
        for look in (lambda: os.listdir(f"/proc/{pid}/fd"), lambda: open(f"/proc/{pid}/mem", "r+b")):
            try:
                look()
            except OSError as error:
                print(error.errno)
"""
    assert await tell(box, code) == "13\n" * 6, "the agent, the helper of `sleep`, and our own"
    await victim.kill()


async def test_programs_on_the_path_of_a_scenario_do_not_write_our_files(boot: Boot, say: Ask) -> None:
    box = await boot(environment={"PATH": "/app/bin:/usr/bin:/bin"})
    await run(box, shell(f"PATH=/usr/bin:/bin; {PLANTS}"), timeout=10)
    await write_file(box, "/tmp/script", b"true\n")
    assert await say(box, "/bin/cat /tmp/script") == "true\n"


async def test_programs_on_the_path_of_a_scenario_do_not_score(boot: Boot, tmp_path: Path) -> None:
    scoring = Scoring(cache=tmp_path / "cache")
    scorer = {"type": "bash_script_scorer", "bash_script": "echo score=0.25"}
    contract = {"scoring_function_parameters": [{"name": "f", "weight": 1.0, "scorer": scorer}]}
    box = await boot(environment={"PATH": "/app/bin:/usr/bin:/bin"}, working_directory="/app")
    await run(box, shell(f"PATH=/usr/bin:/bin; {PLANTS}"), timeout=10)

    async def custom(_: str) -> str | None:
        return None

    place = InPlace(box=box, working_directory=".")
    result = await scoring.score(contract, place, timeout=20, custom=custom)
    assert result.score == 0.25


MONSTER = """
import ctypes, os, signal, sys, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
libc = ctypes.CDLL(None)
libc.prctl(36, 1, 0, 0, 0)
libc.prctl(1, 0, 0, 0, 0)
for _ in range(5):
    if os.fork() == 0:
        while os.fork() == 0:
            os.setsid()
            time.sleep(0.002)
        os._exit(0)
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        time.sleep(1000)
print("up", flush=True)
time.sleep(1000)
"""


async def test_a_command_that_ignores_signals_and_forks_for_ever_is_killed(boot: Boot, say: Ask) -> None:
    box = await boot()
    process = await box.spawn(Command(argv=("python3", "-c", MONSTER)))
    assert await process.stdout.receive() == b"up\n"
    await process.kill()
    assert await process.wait() == 137
    assert await say(box, "pgrep -c python3") == "0\n"


async def test_a_command_that_freezes_its_supervisors_ends_with_its_box(boot: Boot) -> None:
    box = await boot()
    process = await box.spawn(shell("kill -STOP $PPID 2; (setsid sleep 1000 &); exec sleep 1000"))
    with anyio.fail_after(15):
        await anyio.sleep(0.3)
        await box.stop()
        assert await box.wait_dead()
    assert not box.folder.base.exists()
    await process.kill()
