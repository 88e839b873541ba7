"""Limits on devboxes, agents and costs, and scorers that fail."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import Desk, Service


pytestmark = pytest.mark.slow


def most_at_once(devboxes: list[dict[str, Any]]) -> int:
    """The highest number of devboxes alive at the same time, by their own account."""
    changes = []
    for devbox in devboxes:
        changes += [(devbox["create_time_ms"], 1), (devbox["end_time_ms"], -1)]
    alive = most = 0
    for _, change in sorted(changes):
        alive += change
        most = max(most, alive)
    return most


def test_no_more_devboxes_are_alive_than_allowed(served: "Desk", service: "Service") -> None:
    before = {devbox["id"] for devbox in service.devboxes()}
    served.sweep("run", "six", "--agent", "command:sleep 0.3; touch done", "--devboxes", "2")
    fresh = [devbox for devbox in service.devboxes() if devbox["id"] not in before]
    assert len(fresh) == 6
    assert {devbox["status"] for devbox in fresh} == {"shutdown"}
    assert most_at_once(fresh) == 2


def test_more_agents_than_allowed_wait_for_their_turn(served: "Desk") -> None:
    """The waiting is told apart from the work."""
    command = ("run", "six", "--agent", "command:sleep 0.7", "--limit", "3", "--agents", "1", "--name", "mine")
    served.sweep(*command)
    stages = [result["stages"]["solve"] for result in served.results("runs/mine")]
    assert sum(stage["waited"] > 0.5 for stage in stages) >= 2


def test_a_scorer_that_breaks_its_own_rules_is_a_fault_and_never_a_zero(served: "Desk") -> None:
    """Its output is in the message, the agent is not run again, and the exit code tells."""
    ended = served.sweep("run", "broken", "--agent", "oracle", "--name", "mine", status=1)
    (result,) = served.results("runs/mine")
    assert (result["outcome"], result["score"]) == ("failed", None)
    assert (result["failure"]["class"], result["failure"]["stage"]) == ("ScoringFault", "score")
    assert "1.7" in result["failure"]["message"]
    assert "1.7" in served.log("runs/mine", result, "scorer_tests")
    assert "[1/1] too-much  failed: ScoringFault" in ended.out
    assert len(served.journal("runs/mine", "execution.started")) == 1
    table = next(line.split() for line in ended.out.splitlines() if line.startswith("oracle "))
    assert table[1:5] == ["0/1", "1", "0", "-"]
    assert ended.out.index("Failed:\n  1  ScoringFault: ") < ended.out.index(
        "     sweep logs mine too-much --file scorers/"
    )


def test_an_arm_has_a_limit_and_a_budget_of_its_own_and_who_says_no_cost_is_named(served: "Desk") -> None:
    """The arm that spends stops at its cost; the other one goes to its end."""
    spends = "[usage]\ncost_usd = '$[0].cost'\n"
    (served.folder / "dear.toml").write_text(f"run = '''touch done; echo '{{\"cost\": 1.5}}' '''\n{spends}")
    (served.folder / "mute.toml").write_text("run = 'touch done'\n")
    (served.folder / "sweep.toml").write_text(
        'benchmark = "six"\nname = "arms"\n'
        '[[arms]]\nagent = "./dear.toml"\ncost = 3\nagents = 1\n[[arms]]\nagent = "./mute.toml"\ncost = 3\n'
    )
    ended = served.sweep("run", "--config", "sweep.toml", status=1)
    arms = [result["arm"] for result in served.results("runs/arms")]
    assert (arms.count("dear"), arms.count("mute")) == (2, 6)
    assert "the cost of arm dear, 3, is used up (3.00 USD)" in str(ended)
    assert "What mute spends is not counted" in str(ended)


def test_settings_can_be_typed(served: "Desk") -> None:
    (served.folder / "mine.py").write_text("def agent(prompt, settings):\n    print(sorted(settings.items()))\n")
    typed = ("--set", "depth=2", "--set", "mood=good", "--set", "flags=[true, 'x']")
    folder = served.sweep("run", "six", "--limit", "1", "--agent", "./mine.py:agent", *typed).folder
    (result,) = served.results(folder)
    assert served.log(folder, result) == "[('depth', 2), ('flags', [True, 'x']), ('mood', 'good')]\n"


@pytest.mark.root
def test_limits_that_this_machine_cannot_enforce_are_reported_once_at_the_start(desk: "Desk") -> None:
    """Without sandboxes and control groups nothing is counted anywhere."""
    words = ["run", "bugfix-mini", "--agent", "nop", "--limit", "2", "--isolation", "none", "--name", "mine"]
    command = shlex.join([sys.executable, "-m", "orchestrator", *words])
    hidden = f"mount -t tmpfs none /sys/fs/cgroup && mount -o remount,ro /sys/fs/cgroup && {command}"
    said = desk.spawn(["unshare", "--mount", "sh", "-c", hidden]).end()
    assert said.status == 0, str(said)
    assert (said.out + said.err).count("One devbox can take all there is of memory, CPU, number of processes") == 1
    assert "--isolation local" in said.out + said.err


def test_agents_are_killed_before_the_sweep_and_its_service_when_memory_runs_out(desk: "Desk") -> None:
    """The kernel's scores of a program of this machine, of a devbox's command, and of those who started them."""
    ours = Path("/proc/self/oom_score_adj").read_text().strip()
    run = (
        "cat /proc/self/oom_score_adj; sweep workspace exec 'cat /proc/self/oom_score_adj'; "
        "for pid in $(pgrep -f 'orchestrator (run|serve)'); do "
        f"grep -qz {desk.mark} /proc/$pid/environ && ! grep -qz workspace /proc/$pid/cmdline && "
        "echo other $(cat /proc/$pid/oom_score_adj); done; true"
    )
    (desk.folder / "mine.toml").write_text(f"where = 'host'\nrun = '''{run}'''\n")
    desk.sweep("run", "bugfix-mini", "--agent", "./mine.toml", "--limit", "1", "--name", "mine")
    (result,) = desk.results("runs/mine")
    lines = desk.log("runs/mine", result).splitlines()
    assert lines[:2] == ["1000", "1000"]
    assert lines[2:]
    assert set(lines[2:]) == {f"other {ours}"}
