"""Programs in a devbox are killed first when memory runs out."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orchestrator.service.sandbox.boxagent import EXPENDABLE, FIRST_TO_GO

if TYPE_CHECKING:
    from orchestrator.service.sandbox.base_provider import AgentBox
    from tests.sandbox.conftest import Bench

pytestmark = pytest.mark.anyio

#: The capability of that number, in the bits of CapEff (capabilities(7)).
CAP_SYS_RESOURCE = 24
SERVICE = """
import sys
from pathlib import Path
Path("/proc/self/oom_score_adj").write_text("950")
from orchestrator.service.sandbox.bwrap.spawner import Guard

guard = Guard()
words = ["sh", "-c", "cat /proc/self/oom_score_adj >&2"]
guard.start(words, user=None, fds=(), errors=sys.stdout).wait()
print(Path("/proc/self/oom_score_adj").read_text())
guard.close()
"""


def score(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def may_set_floors() -> bool:
    status = Path("/proc/self/status").read_text()
    bits = next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1]
    return bool(int(bits, 16) >> CAP_SYS_RESOURCE & 1)


def descendants(box: "AgentBox") -> list[int]:
    assert box._child is not None
    found = [box._child.pid]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


async def test_every_process_of_a_box_goes_before_the_service(bench: "Bench") -> None:
    before = score("self")
    box = await bench.boot()
    idle = descendants(box)
    assert {score(pid) for pid in idle} == {max(before, EXPENDABLE)}
    process = await bench.start(box, "(setsid sleep 1000 &) ; sleep 1000 & echo up; wait")
    await process.stdout.receive()
    commands = set(descendants(box)) - set(idle)
    assert len(commands) >= 3
    assert {score(pid) for pid in commands} == {FIRST_TO_GO}
    assert score("self") == before


async def test_a_command_is_born_with_its_score(bench: "Bench") -> None:
    box = await bench.boot()
    assert (await bench.run(box, "cat /proc/self/oom_score_adj")).output == f"{FIRST_TO_GO}\n"


async def test_no_command_can_make_itself_less_likely_to_go_than_the_service(bench: "Bench") -> None:
    """Not even less than its box, where the service may set floors."""
    box = await bench.boot()
    lower = (
        "for n in 0 -1 -1000 899; do echo $n >/proc/self/oom_score_adj; done 2>/dev/null; cat /proc/self/oom_score_adj"
    )
    least = int((await bench.run(box, lower)).output)
    if bench.provider.name == "local" and may_set_floors():
        assert least == FIRST_TO_GO
    elif bench.provider.name == "local" or os.geteuid() != 0:
        assert least >= score("self")


def test_a_service_that_goes_sooner_still_does_not_make_its_boxes_outlive_it() -> None:
    """A score that is higher than ours for boxes stays."""
    done = subprocess.run([sys.executable, "-c", SERVICE], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["950", "950"]
