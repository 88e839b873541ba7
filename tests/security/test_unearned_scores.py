"""Agents that steal a score, and agents that evade a 0, against every kind of scorer and where it runs.

The answer of the scenarios here is a number that no agent can know, so that every score above 0 is unearned.
"""

import textwrap
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import pytest

from orchestrator.core.protocol import Isolation
from orchestrator.service.assembly import Service
from orchestrator.service.runs import start_request
from orchestrator.service.runs.start_request import environment_of
from orchestrator.service.sandbox.prepared import Prepared
from orchestrator.service.sandbox.provider import ImageRoot
from tests.waiting import poll

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

TOKEN: Final = "a token of the tests"
ANSWER: Final = 805_687_865
TASK: Final = """
[agent]
timeout_sec = 60
[verifier]
timeout_sec = 30
[environment]
allow_internet = false
memory_mb = 512
storage_mb = 512
"""
SCORERS: Final = f"""
[[scorers]]
name = "bash"
weight = 0.25
type = "bash_script_scorer"
bash_script = "b.sh"
[[scorers]]
name = "python"
weight = 0.25
type = "python_script_scorer"
python_script = "p.py"
[[scorers]]
name = "command"
weight = 0.25
type = "command_scorer"
command = "python3 -c 'import calc; assert calc.answer() == {ANSWER}'"
[[scorers]]
name = "tests"
weight = 0.25
type = "test_based_scorer"
test_command = "python3 -m unittest -q hidden_test"
test_files = {{ "hidden_test.py" = "hidden_test.py" }}
"""
HIDDEN: Final = f"""
import unittest, calc
class Test(unittest.TestCase):
    def test_answer(self):
        self.assertEqual(calc.answer(), {ANSWER})
if __name__ == "__main__":
    unittest.main()
"""
FILES: Final = {
    "four": {
        "task.toml": TASK + SCORERS,
        "tests/b.sh": 'r=$(python3 -c "import calc; print(calc.answer())")\n'
        f'[ "$r" = {ANSWER} ] && echo score=1 || echo score=0\n',
        "tests/p.py": f"import calc\nprint(1.0 if calc.answer() == {ANSWER} else 0.0)\n",
        "tests/hidden_test.py": HIDDEN,
    },
    "folder": {
        "task.toml": TASK,
        "tests/hidden_test.py": HIDDEN,
        "tests/test.sh": "cd /app\nif PYTHONPATH=/app python3 /tests/hidden_test.py; then echo 1; else echo 0; fi "
        ">/logs/verifier/reward.txt\n",
    },
}


def daemon(code: str) -> str:
    """A process that the agent leaves behind."""
    start = "(setsid python3 /tmp/d.py >/dev/null 2>&1 </dev/null &); sleep 0.3"
    return f"cat >/tmp/d.py <<'END'\n{textwrap.dedent(code)}\nEND\n{start}\n"


#: Ways to a score that was not earned.
THEFTS: Final = {
    "a daemon that rewrites the reward": daemon("""
        import os
        while True:
            try:
                fd = os.open("/logs/verifier/reward.txt", os.O_WRONLY)
                os.pwrite(fd, b"1", 0)
            except OSError:
                pass
    """),
    "a daemon that reads the tests and solves them": daemon("""
        import re
        while True:
            for path in ("/tests/hidden_test.py", "/app/hidden_test.py"):
                try:
                    found = re.search(r"answer\\(\\), (\\d+)", open(path).read())
                    open("/app/calc.py", "w").write(f"def answer():\\n    return {found[1]}\\n")
                except (OSError, TypeError):
                    pass
    """),
    "a daemon that rewrites scripts": daemon("""
        import glob
        while True:
            for path in (*glob.glob("/tmp/.scorer-*/script"), "/run/scorer/script", "/tests/test.sh"):
                try:
                    open(path, "w").write("echo score=1; echo 1 >/logs/verifier/reward.txt\\n")
                except OSError:
                    pass
    """),
    "start-up files and programs at home": (
        "for f in .bashrc .bash_profile .profile .bash_login; do echo 'echo score=1; exit 0' >~/$f; done\n"
        "mkdir -p ~/.local/bin; printf '#!/bin/sh\\necho score=1\\n' >~/.local/bin/python3; chmod +x ~/.local/bin/*"
    ),
    "a module in the user's own site-packages": (
        'd=$(python3 -c "import site; print(site.getusersitepackages())"); mkdir -p "$d"\n'
        "printf 'import os\\nos._exit(0)\\n' >\"$d/usercustomize.py\""
    ),
    "a link to the tests in the place of the work": "ln -sf /tests/hidden_test.py /app/calc.py",
    "files in the place of the tests": (
        "mkdir -p /app/hidden_test.py/x /app/__pycache__; ln -s /etc/passwd /tests/test.sh\n"
        "echo 1 >/logs/verifier/reward.txt; chmod 444 /logs/verifier/reward.txt; chmod 555 /logs/verifier /tests"
    ),
}
#: Ways out of a 0: the devbox that should be judged is not as it was.
SABOTAGE: Final = {
    "everything is killed": "kill -9 -1",
    "the exec agent is killed by its name": (
        "for p in /proc/[0-9]*; do read -r c <$p/comm; [ $c != agent ] || kill -9 ${p#/proc/}; done; true"
    ),
    "the exec agent is stopped when it scores": daemon("""
        import glob, os
        while not glob.glob("/tmp/.scorer-*/script"):
            pass
        for name in filter(str.isdigit, os.listdir("/proc")):
            if open(f"/proc/{name}/comm").read() == "agent\\n":
                os.kill(int(name), 19)
    """),
    "no process can be started": daemon("""
        import os, time
        while True:
            try:
                if os.fork() == 0:
                    time.sleep(1000)
            except OSError:
                time.sleep(0.001)
    """),
    "nothing can be entered": "chmod 000 /tmp /logs /logs/verifier /tests; cd /; chmod 000 /app ~",
    "links lead away": (
        "rm -rf /logs/verifier /logs/artifacts; ln -s /dev /logs/verifier; ln -s /proc/self /logs/artifacts\n"
        "ln -s loop ~/loop; mkfifo /app/hidden_test.py"
    ),
    "a module ends who scores": "printf 'import os, signal\\nos.kill(os.getppid(), signal.SIGKILL)\\n' >/app/calc.py",
    "a module writes nonsense where the reward is": "printf 'import os\\nos.write(1, b\"score=?\")\\nos._exit(0)\\n' "
    ">/app/sitecustomize.py",
    "a module writes the reward and ends the tests": (
        'printf \'import os\\nopen("/logs/verifier/reward.txt", "w").write("1")\\nos.kill(os.getppid(), 9)\\n\' '
        ">/app/calc.py"
    ),
    "a module uses up the memory": "printf 'x = [bytearray(1 << 30) for _ in range(64)]\\n' >/app/calc.py",
    "a module leaves a daemon for the next scorer": (
        'printf \'import os\\nif os.fork() == 0:\\n os.setsid()\\n while True: os.system("pkill -9 -f scorer")\\n'
        "def answer(): return 0\\n' >/app/calc.py"
    ),
}


@dataclass(frozen=True, slots=True)
class Desk:
    """A client of a service whose benchmark is the scenarios above."""

    http: httpx.AsyncClient
    scenarios: Mapping[str, str]

    async def post(self, path: str, body: Any = None) -> Any:
        answer = await self.http.post(path, content=orjson.dumps(body or {}))
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def judged(self, scenario: str, agent: str, scoring: str) -> Any:
        """The run of a scenario whose agent is a shell script, scored until it is no fault of a scorer."""
        run = await self.post("/v1/scenarios/start_run", {"scenario_id": self.scenarios[scenario]})
        devbox = run["devbox_id"]
        wait = {"statuses": ["running", "failure"], "timeout_seconds": 30}
        assert (await self.post(f"/v1/devboxes/{devbox}/wait_for_status", wait))["status"] == "running"
        await self.post(f"/v1/sweep/runs/{run['id']}/agent_begins")
        started = await self.post(f"/v1/devboxes/{devbox}/execute_async", {"command": agent})
        path = f"/v1/devboxes/{devbox}/executions/{started['execution_id']}/wait_for_status"
        await self.post(path, {"statuses": ["completed"], "timeout_seconds": 20})
        await self.http.post(f"/v1/sweep/runs/{run['id']}/agent_ended", json={"scoring": scoring})
        for _ in range(3):
            view = await self._scored(run["id"])
            if view["state"] != "failed":
                break
        await self.post(f"/v1/scenarios/runs/{run['id']}/cancel")
        return view

    async def _scored(self, run: str) -> Any:
        await self.http.post(f"/v1/scenarios/runs/{run}/score")
        ask = partial(self.http.get, f"/v1/scenarios/runs/{run}")
        going = {"running", "scoring"}
        return (await poll(ask, lambda answer: answer.json()["state"] not in going, "it is not scored")).json()


@pytest.fixture(scope="module", params=["system", "image"])
async def desk(
    request: pytest.FixtureRequest, sandboxes: None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Desk]:
    """A desk whose devboxes are of the machine's own system, and one whose are of an image."""
    image = request.getfixturevalue("image") if request.param == "image" else None
    async with opened(tmp_path_factory.mktemp("unearned"), image) as each:
        yield each


@asynccontextmanager
async def opened(place: Path, image: ImageRoot | None) -> AsyncIterator[Desk]:
    """Open a desk with its files in the folder `place`."""
    for name, files in FILES.items():
        common = {
            "instruction.md": "Make calc.answer() return the right number.",
            "environment/calc.py": "def answer():\n    return 0\n",
            "solution/solve.sh": f"printf 'def answer():\\n    return {ANSWER}\\n' >/app/calc.py\n",
        }
        for path, text in {**common, **files}.items():
            file = place / "bench" / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    state, bench = place / "state", place / "bench"
    state.mkdir()

    async def with_image(*given: Any) -> Prepared:
        return replace(await environment_of(*given), image=image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start_request, "environment_of", with_image)
        async with Service.open(state=state, benchmarks=[bench], isolation=Isolation.LOCAL, token=TOKEN) as service:
            headers = {"authorization": f"Bearer {TOKEN}"}
            transport = httpx.ASGITransport(app=service.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://s", headers=headers, timeout=60) as http:
                listed = (await http.get("/v1/scenarios")).json()["scenarios"]
                yield Desk(http, {each["name"]: each["id"] for each in listed})


def scores(view: Mapping[str, Any]) -> dict[str, float]:
    functions = view["scoring_contract_result"]["scoring_function_results"]
    return {each["scoring_function_name"]: each["score"] for each in functions}


@pytest.mark.parametrize("scoring", ["separate", "shared"])
@pytest.mark.parametrize("scenario", FILES)
async def test_the_right_answer_is_right_wherever_it_is_judged(desk: Desk, scenario: str, scoring: str) -> None:
    solution = f"printf 'def answer():\\n    return {ANSWER}\\n' >/app/calc.py"
    view = await desk.judged(scenario, solution, scoring)
    assert (view["scoring_contract_result"]["score"], view["scoring"]["mode"]) == (1.0, scoring)
    assert "broken" not in view["scoring"]


@pytest.mark.parametrize("scoring", ["separate", "shared"])
@pytest.mark.parametrize("scenario", FILES)
@pytest.mark.parametrize("theft", THEFTS)
async def test_no_score_is_stolen(desk: Desk, theft: str, scenario: str, scoring: str) -> None:
    view = await desk.judged(scenario, THEFTS[theft], scoring)
    assert view["state"] == "scored", view
    is_allowed = scoring == "shared" and "site-packages" in theft  # tests may need what is installed there
    assert set(scores(view).values()) == {0.0} or is_allowed
    if "home" in theft or "site-packages" in theft:
        assert view["scoring"]["system_changed"]
    if "daemon" in theft:
        assert view["scoring"]["processes_left"] == {"python3": 1}


@pytest.mark.parametrize("scenario", FILES)
@pytest.mark.parametrize("deed", SABOTAGE)
async def test_no_zero_is_evaded(desk: Desk, deed: str, scenario: str) -> None:
    for scoring in ("separate", "shared"):
        view = await desk.judged(scenario, SABOTAGE[deed], scoring)
        assert view["state"] == "scored", view
        assert set(scores(view).values()) == {0.0}, scoring


async def test_a_devbox_whose_disk_is_full_is_the_agents_zero(desk: Desk) -> None:
    view = await desk.judged("folder", "head -c 4G /dev/zero >/tmp/fill; sleep 15", "shared")
    assert (view["state"], scores(view)) == ("scored", {"tests": 0.0})
    assert "out of disk" in view["scoring"]["broken"]


async def test_what_the_agents_code_changes_for_the_next_scorer_while_one_runs_it_is_told(desk: Desk) -> None:
    module = """
import os, site
folder = site.getusersitepackages()
os.makedirs(folder, exist_ok=True)
open(f"{folder}/usercustomize.py", "w").close()
def answer():
    return 0
"""
    agent = f"cat >/app/calc.py <<'END'{module}END"
    changed = (await desk.judged("four", agent, "shared"))["scoring"]["system_changed"]
    assert [place.rpartition("/")[2] for place in changed] == ["usercustomize.py"]
    assert (await desk.judged("folder", agent, "shared"))["scoring"]["system_changed"] == []


async def test_an_agent_that_leaves_a_server_is_scored_beside_it_and_that_is_said(desk: Desk) -> None:
    server = daemon("""
        import socket, time
        s = socket.socket(); s.bind(("127.0.0.1", 8000)); s.listen(); time.sleep(1000)
    """)
    server += "until grep -q ':1F40 ' /proc/net/tcp; do sleep 0.05; done"
    view = await desk.judged("folder", server, "declared")
    assert (view["scoring"]["mode"], view["scoring"]["processes_left"]) == ("live", {"python3": 1})
    assert (await desk.judged("folder", server, "separate"))["scoring"]["mode"] == "separate"


async def test_a_thief_beside_a_server_that_kills_the_scorers_is_flagged(
    desk: Desk,
) -> None:
    """The first scoring, beside the server, is a fault, and the second one runs over what was stolen."""
    thief = daemon("""
        import os, re, socket
        s = socket.socket(); s.bind(("127.0.0.1", 8000)); s.listen()
        while True:
            try:
                found = re.search(r"answer\\(\\), (\\d+)", open("/tests/hidden_test.py").read())
                open("/app/calc.py", "w").write(f"def answer():\\n    return {found[1]}\\n")
            except (OSError, TypeError):
                continue
            for name in filter(str.isdigit, os.listdir("/proc")):
                try:
                    if b"scorer" in open(f"/proc/{name}/cmdline", "rb").read():
                        os.kill(int(name), 9)
                except OSError:
                    pass
    """)
    view = await desk.judged("folder", thief + "until grep -q ':1F40 ' /proc/net/tcp; do sleep 0.05; done", "shared")
    assert view["scoring"]["was_live"] or view["scoring"]["mode"] == "live"
