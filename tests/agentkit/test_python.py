"""Python agents in their worker processes: shapes, workspace, and every way to die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import pytest

from orchestrator.agentkit.agent import Result
from orchestrator.agentkit.loader import check, load
from orchestrator.agentkit.python.python_agent import PythonAgent
from orchestrator.agentkit.python.worker import supervisor
from orchestrator.core.errors import AgentSetupFailed, DevboxLost, JournalError, Refused, Unauthorized, UsageError
from tests.processes import is_alive, living_children, open_files
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from orchestrator.agentkit.agent import Task
    from tests.agentkit.conftest import LocalWorkspace, MakeTask

pytestmark = pytest.mark.anyio


class Bench:
    """Runs agents from source text, and keeps what they print."""

    def __init__(self, folder: Path, workspace: LocalWorkspace, make_task: MakeTask) -> None:
        self.folder = folder
        self.workspace = workspace
        self.make_task = make_task
        self.log = bytearray()
        self.agents: list[PythonAgent] = []

    def load(self, code: str, entry: str = "MyAgent", **rest: Any) -> PythonAgent:
        (self.folder / "my_agent.py").write_text(textwrap.dedent(code))
        environ: Mapping[str, str] = rest.pop("environ", os.environ)
        python = rest.pop("python", Path(sys.executable))
        settings: Mapping[str, object] = rest.pop("settings", {})
        reference = f"{self.folder}/my_agent.py:{entry}"
        agent = load(reference, python=python, search=(), settings=settings, environ=environ)
        assert isinstance(agent, PythonAgent)
        self.agents.append(agent)
        return agent

    async def aclose(self) -> None:
        for agent in self.agents:
            await agent.aclose()

    async def run(self, code: str, entry: str = "MyAgent", *, task: Task | None = None, **rest: Any) -> Result:
        return await self.load(code, entry, **rest).solve(task or self.make_task(), self.workspace, self.log.extend)

    @property
    def printed(self) -> str:
        return self.log.decode()


@pytest.fixture
async def bench(tmp_path: Path, workspace: LocalWorkspace, make_task: MakeTask) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path, workspace, make_task)
    yield bench
    await bench.aclose()


async def test_the_documented_shape_works_as_it_stands(bench: Bench) -> None:
    code = """
        class MyAgent:
            def __init__(self, prompt):
                self.prompt = prompt
            def run(self):
                print("asked to", self.prompt)
    """
    assert await bench.run(code) == Result(exit_status=0)
    assert bench.printed == "asked to Mend it.\n"


@pytest.mark.parametrize("has", ["run __call__ solve", "__call__ solve", "solve"])
async def test_the_entry_point_is_run_else_call_else_solve(bench: Bench, has: str) -> None:
    methods = "".join(f"\n    def {name}(self): print('{name}')" for name in has.split()[::-1])
    await bench.run(f"class MyAgent:\n    def __init__(self, prompt): pass{methods}")
    assert bench.printed == has.split(maxsplit=1)[0] + "\n"


@pytest.mark.parametrize(
    "code",
    [
        "def MyAgent(prompt): print(prompt)",
        "async def MyAgent(prompt): print(prompt)",
        "def MyAgent(**rest): print(rest['prompt'])",
        "import functools\ndef f(a, prompt): print(prompt)\nMyAgent = functools.partial(f, 1)",
        "class A:\n    def run(self, prompt): print(prompt)\nMyAgent = A()",
        "class MyAgent:\n    def run(self, prompt): print(prompt)",
        "class MyAgent:\n    def __init__(self, **rest): print(rest['prompt'])\n    def run(self): pass",
        "import dataclasses as d\n@d.dataclass\nclass MyAgent:\n  prompt: str\n  def run(self): print(self.prompt)",
        "class MyAgent:\n  def __init__(self, prompt): self.p = prompt\n  async def __call__(self): print(self.p)",
        "class A:\n  class B:\n    def __init__(self, prompt): print(prompt)\n    def run(self): 0\nMyAgent = A.B",
    ],
)
async def test_other_shapes_of_agents_work_too(bench: Bench, code: str) -> None:
    agent = bench.load(code)
    await agent.check()
    assert (await agent.solve(bench.make_task(), bench.workspace, bench.log.extend)).exit_status == 0
    assert bench.printed == "Mend it.\n"


async def test_a_nested_class_is_named_with_a_dot(bench: Bench) -> None:
    await bench.run("class Outer:\n    class Inner:\n        def run(self): print('inner')", "Outer.Inner")
    assert bench.printed == "inner\n"


async def test_an_asynchronous_agent_is_built_inside_its_event_loop(bench: Bench) -> None:
    code = """
        import asyncio
        class MyAgent:
            def __init__(self, prompt):
                self.loop = asyncio.get_running_loop()
            async def run(self):
                assert self.loop is asyncio.get_running_loop()
    """
    assert (await bench.run(code)).exit_status == 0


async def test_an_agent_gets_what_it_asks_for_by_name(bench: Bench) -> None:
    code = """
        class MyAgent:
            def __init__(self, prompt, *, model, settings, scenario):
                print(prompt, model, settings, scenario, scenario.id)
            def run(self, log, devbox_id, workspace):
                log("in", devbox_id, workspace.working_directory)
    """
    task = bench.make_task(model="gpt-x", settings={"depth": 4})
    await bench.run(code, task=task, settings={"depth": 3, "width": 1})
    assert bench.printed.splitlines() == [
        "Mend it. gpt-x {'depth': 4, 'width': 1} csv-quoted-newlines scn_1",
        f"in {task.devbox_id} {bench.workspace.working_directory}",
    ]


async def test_a_parameter_without_a_value_keeps_its_default(bench: Bench) -> None:
    await bench.run("def MyAgent(prompt, model='mine', settings={'a': 1}, other=2): print(model, settings, other)")
    assert bench.printed == "mine {'a': 1} 2\n"


async def test_the_environment_is_the_users_with_the_endpoint_and_the_devbox(bench: Bench) -> None:
    code = """
        import os
        def MyAgent(prompt):
            names = "MINE RUNLOOP_BASE_URL RUNLOOP_API_KEY SWEEP_DEVBOX_ID SWEEP_SCENARIO SWEEP_MODEL".split()
            print(*(os.environ.get(name) for name in names), sep="\\n")
    """
    task = bench.make_task(model="gpt-x")
    await bench.run(code, task=task, environ={"MINE": "1", "PATH": os.environ["PATH"]})
    assert bench.printed.splitlines() == [
        "1",
        "http://127.0.0.1:9",
        "None",
        task.devbox_id,
        "csv-quoted-newlines",
        "gpt-x",
    ]


async def test_a_key_of_the_user_reaches_the_agent_and_is_known_as_a_secret(bench: Bench) -> None:
    code = "import os\ndef MyAgent(prompt): print(os.environ['RUNLOOP_API_KEY'])"
    agent = bench.load(code, environ={"RUNLOOP_API_KEY": "ak_1"})
    await agent.solve(bench.make_task(), bench.workspace, bench.log.extend)
    assert bench.printed == "ak_1\n"
    assert agent.secrets == {"RUNLOOP_API_KEY": "ak_1"}
    assert "ak_1" not in repr(agent)


async def test_a_file_sees_its_neighbours_and_nothing_of_ours(bench: Bench) -> None:
    """Like a script: its own folder comes first on the path, and the folder of the worker is not on it."""
    (bench.folder / "helper.py").write_text("NAME = 'neighbour'")
    code = """
        import importlib.util, sys
        import helper
        def MyAgent(prompt):
            ours = [name for name in ("command", "definition", "loader", "contract") if importlib.util.find_spec(name)]
            print(helper.NAME, sys.path[0], __name__.startswith("_"), sys.argv, ours, sys.stdin.read() == "")
    """
    await bench.run(code)
    folder = bench.folder
    assert bench.printed == f"neighbour {folder} True ['{folder}/my_agent.py'] [] True\n"


async def test_usage_is_what_the_agent_returns_as_usage(bench: Bench) -> None:
    code = """
        def MyAgent(prompt):
            return {"answer": object(), "usage": {"input_tokens": 3, "cost_usd": 0.25, "turns": float("nan"),
                                                  "output_tokens": "many", "cached_tokens": True, "else": 1}}
    """
    result = await bench.run(code)
    assert result == Result(exit_status=0, usage={"input_tokens": 3, "cost_usd": 0.25})


@pytest.mark.parametrize("value", ["'done'", "object()", "{}", "{'usage': 3}", "[1]"])
async def test_an_unknown_return_value_is_ignored(bench: Bench, value: str) -> None:
    assert await bench.run(f"def MyAgent(prompt): return {value}") == Result(exit_status=0)


async def test_output_of_an_agent_arrives_while_it_works(bench: Bench) -> None:
    code = """
        import subprocess, sys
        def MyAgent(prompt, workspace):
            print("from print")
            sys.stderr.write("from stderr\\n")
            subprocess.run(["echo", "from a child"])
            while workspace.exec("test -e go").exit_status: pass
    """
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.run, code)
        await until(lambda: bench.printed == "from print\nfrom stderr\nfrom a child\n", lambda: bench.printed)
        (bench.workspace.root / "go").touch()


async def test_the_workspace_runs_reads_and_writes(bench: Bench) -> None:
    code = """
        def MyAgent(prompt, workspace):
            workspace.write("new/folder/a.txt", "é")
            workspace.write("new/b.bin", bytes(range(256)))
            assert workspace.read("new/b.bin") == bytes(range(256))
            r = workspace.exec('cat a.txt; echo "$X" >&2; exit 5', cwd="new/folder", environment={"X": "it's"})
            print(r.exit_status, r.stdout, r.stderr, sep="|")
            print(workspace.exec("sleep 60", timeout=0.2).exit_status)
    """
    await bench.run(code)
    assert bench.printed == "5|é|it's\n\nNone\n"


async def test_the_workspace_works_from_asynchronous_code_with_many_calls_at_once(bench: Bench) -> None:
    code = """
        import asyncio
        async def MyAgent(prompt, workspace):
            async def one(n):
                await workspace.awrite(f"f{n}", str(n))
                result = await workspace.aexec(f"cat f{n}")
                assert await workspace.aread(f"f{n}") == result.stdout.encode() == str(n).encode()
            await asyncio.gather(*(one(n) for n in range(20)))
            try:
                await asyncio.wait_for(workspace.aexec("sleep 60"), 0.2)
            except asyncio.TimeoutError:
                print("given up;", (await workspace.aexec("echo still here")).stdout)
    """
    assert (await bench.run(code)).exit_status == 0
    assert bench.printed == "given up; still here\n\n"


async def test_the_workspace_works_from_threads(bench: Bench) -> None:
    code = """
        from concurrent.futures import ThreadPoolExecutor
        def MyAgent(prompt, workspace):
            with ThreadPoolExecutor(8) as pool:
                got = list(pool.map(lambda n: workspace.exec(f"echo {n}").stdout, range(16)))
            assert got == [f"{n}\\n" for n in range(16)], got
    """
    assert (await bench.run(code)).exit_status == 0


async def test_large_files_pass_whole(bench: Bench) -> None:
    code = """
        def MyAgent(prompt, workspace):
            data = bytes(range(256)) * (20 << 12)
            workspace.write("large", data)
            assert workspace.read("large") == data
    """
    assert (await bench.run(code)).exit_status == 0
    assert (bench.workspace.root / "large").stat().st_size == 20 << 20


async def test_a_missing_file_is_the_error_python_has_for_it(bench: Bench) -> None:
    code = """
        def MyAgent(prompt, workspace):
            try:
                workspace.read("gone")
            except FileNotFoundError as error:
                print("gone" in str(error))
    """
    await bench.run(code)
    assert bench.printed == "True\n"


async def test_a_refusal_of_the_devbox_is_an_error_in_the_agent(bench: Bench) -> None:
    bench.workspace.fault = Refused("no such folder as /proc/x")
    result = await bench.run("def MyAgent(prompt, workspace): workspace.write('/proc/x', 'data')")
    assert result.exit_status == 1
    assert result.message.endswith("WorkspaceError: no such folder as /proc/x")


async def test_a_refusal_that_python_has_an_odd_error_for_is_one_of_values(bench: Bench) -> None:
    """The errors of Unicode are made of more than a message. The calls after it are answered as ever."""
    bench.workspace.fault = UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates not allowed")
    code = """
        def MyAgent(prompt, workspace):
            for _ in range(2):
                try:
                    workspace.exec("true")
                except ValueError as error:
                    print(error)
    """
    assert (await bench.run(code, task=bench.make_task(time_limit=20))).exit_status == 0
    assert bench.printed.count("surrogates not allowed") == 2


@pytest.mark.parametrize("fault", [DevboxLost("it died"), Unauthorized("bad key"), AssertionError("ours")])
async def test_faults_of_the_world_or_of_ours_are_not_the_agents(bench: Bench, fault: Exception) -> None:
    """It ends the agent and is raised as it is, even if the agent would have caught it."""
    bench.workspace.fault = fault
    code = """
        import time
        def MyAgent(prompt, workspace):
            try:
                workspace.exec("true")
            except Exception:
                pass
            time.sleep(600)
    """
    with pytest.raises(type(fault), match=str(fault)):
        await bench.run(code)


async def test_a_log_that_cannot_be_written_stops_the_attempt(bench: Bench) -> None:
    def full(chunk: bytes) -> None:
        raise JournalError("no space left")

    agent = bench.load("import time\ndef MyAgent(prompt):\n    print('x')\n    time.sleep(600)")
    with pytest.raises(JournalError, match="no space left"):
        await agent.solve(bench.make_task(), bench.workspace, full)


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("raise ValueError('no idea')", 1, "ValueError: no idea"),
        ("import os; print('so long'); os._exit(9)", 9, "so long"),
        ("import os; os._exit(0)", 1, "ended before the agent had returned"),
        ("import sys; sys.exit(4)", 4, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit('why')", 1, "why"),
        ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
        ("import ctypes; ctypes.string_at(0)", 128 + signal.SIGSEGV, "Segmentation fault"),
        ("import os; os.kill(os.getpid(), 9)", 128 + signal.SIGKILL, ""),
        ("import os; os.kill(os.getppid(), 9); import time; time.sleep(600)", 128 + signal.SIGKILL, ""),
    ],
)
async def test_every_way_to_die_is_a_result(bench: Bench, code: str, status: int, message: str) -> None:
    result = await bench.run(f"def MyAgent(prompt):\n    {code}")
    assert result.exit_status == status
    assert message in result.message


async def test_a_traceback_shows_the_agents_frames_only(bench: Bench) -> None:
    result = await bench.run("def MyAgent(prompt):\n    helper()\ndef helper():\n    raise ValueError('no')")
    assert result.message == bench.printed.rstrip()
    assert "worker.py" not in bench.printed
    assert bench.printed.count('my_agent.py", line') == 2


async def test_a_class_that_is_gone_by_the_time_it_is_run_is_a_result(bench: Bench) -> None:
    result = await bench.run("other = 1")
    assert result.exit_status == 1
    assert "has no 'MyAgent'" in result.message


async def test_an_agent_that_nobody_checked_fails_in_prepare(bench: Bench) -> None:
    with pytest.raises(AgentSetupFailed, match="did you mean MyAgent"):
        await bench.load("class MyAgent:\n    def run(self): pass", "MyAgnet").prepare(
            bench.make_task(), bench.workspace
        )


async def test_an_agent_is_loaded_for_checking_once(bench: Bench) -> None:
    agent = bench.load("open(__file__ + '.loads', 'a').write('x')\ndef MyAgent(prompt): pass")
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(agent.prepare, bench.make_task(), bench.workspace)
    assert (bench.folder / "my_agent.py.loads").read_text() == "x"


FAMILY = """
    import os, subprocess, sys, time
    def MyAgent(prompt, workspace):
        script = "import os, time; os.setsid(); os.fork(); os.fork();"
        script += "open(PIDS, 'a').write(f'{os.getpid()}\\\\n'); time.sleep(600)"
        path = os.path.join(workspace.working_directory, "pids")
        for _ in range(2):
            subprocess.Popen([sys.executable, "-c", script.replace("PIDS", repr(path))])
        open(path, "a").write(f"{os.getpid()}\\n{os.getppid()}\\n")
        while workspace.exec("wc -l < pids").stdout.strip() != "10": pass
        workspace.write("ready", "")
        END
"""


def family(workspace: LocalWorkspace) -> list[int]:
    return [int(pid) for pid in (workspace.root / "pids").read_text().split()]


async def test_a_timeout_ends_daemons_and_all(bench: Bench) -> None:
    async with anyio.create_task_group() as tasks:
        agent = bench.load(FAMILY.replace("END", "time.sleep(600)"))
        results: list[Result] = []

        async def solve() -> None:
            task = bench.make_task(time_limit=3)
            results.append(await agent.solve(task, bench.workspace, bench.log.extend))

        tasks.start_soon(solve)
        await until((bench.workspace.root / "ready").exists, "it does not work")
        assert all(is_alive(pid) for pid in family(bench.workspace))
    assert results[0].is_timed_out
    assert len(family(bench.workspace)) == 10
    assert not any(is_alive(pid) for pid in family(bench.workspace))


async def test_processes_an_agent_leaves_running_end_with_it(bench: Bench) -> None:
    result = await bench.run(FAMILY.replace("END", "return {'usage': {'turns': 1}}"))
    assert result == Result(exit_status=0, usage={"turns": 1})
    assert not any(is_alive(pid) for pid in family(bench.workspace))


async def test_threads_left_running_do_not_hold_up_the_attempt(bench: Bench) -> None:
    agent = bench.load(
        "import threading, time\ndef MyAgent(prompt):\n    threading.Thread(target=time.sleep, args=(600,)).start()"
    )
    with anyio.fail_after(20):
        worker = await agent._start()
        task = agent._frame(bench.make_task(), bench.workspace)
        ended = await worker.run(task, log=bench.log.extend, time_limit=600, linger=0.2)
    assert ended.exit_status == 0
    assert "had not ended 0.2 seconds after the agent" in bench.printed


async def test_requests_that_nobody_waits_for_do_not_hold_up_the_result(bench: Bench) -> None:
    """More of them than are answered at once; those that were never begun can be given up too."""
    code = """
        import asyncio
        async def MyAgent(prompt, workspace):
            for _ in range(100):
                asyncio.ensure_future(workspace.aexec("sleep 600"))
            await asyncio.sleep(0)
            return {"exit_reason": "done"}
    """
    result = await bench.run(code, task=bench.make_task(time_limit=30))
    assert (result.exit_status, result.exit_reason) == (0, "done")


async def test_requests_that_are_given_up_at_once_hold_up_no_other(bench: Bench) -> None:
    code = """
        import asyncio
        async def MyAgent(prompt, workspace):
            for _ in range(200):
                asked = asyncio.ensure_future(workspace.aexec("sleep 600"))
                await asyncio.sleep(0)
                asked.cancel()
                await asyncio.sleep(0)
            print((await workspace.aexec("echo here")).stdout)
    """
    assert (await bench.run(code, task=bench.make_task(time_limit=30))).exit_status == 0
    assert bench.printed.strip() == "here"


async def test_garbage_on_the_socket_is_the_agents_failure(bench: Bench) -> None:
    code = """
        import os, stat, time
        def MyAgent(prompt):
            for fd in range(3, 50):
                try:
                    if stat.S_ISSOCK(os.fstat(fd).st_mode):
                        os.write(fd, b"\\xff" * 100)
                except OSError:
                    pass
            time.sleep(600)
    """
    result = await bench.run(code)
    assert result.exit_status == 1
    assert "is not a frame" in result.message


@pytest.mark.parametrize("sent", ["[1]", '{"op": "result", "status": []}', "[" * 100_000, "{"])
async def test_a_frame_of_the_wrong_shape_is_the_agents_failure(bench: Bench, sent: str) -> None:
    code = """
        import struct, time
        def MyAgent(prompt, workspace):
            data = SENT
            workspace._channel._socket.sendall(struct.pack("!II", len(data), 0) + data)
            time.sleep(600)
    """
    result = await bench.run(code.replace("SENT", repr(sent.encode())))
    assert result.exit_status == 1
    assert "is not a frame" in result.message


@pytest.mark.parametrize("delay", [0, 0.001, 0.003, 0.01, 0.02, 0.04, 0.06, 0.1])
async def test_an_attempt_cancelled_while_it_starts_leaves_nothing(bench: Bench, delay: float) -> None:
    files, children = open_files(), living_children()
    with anyio.move_on_after(delay):
        await bench.run("import time\ndef MyAgent(prompt): time.sleep(600)")
    assert open_files() <= files
    assert living_children() == children


async def test_a_request_of_the_wrong_shape_is_answered_with_an_error(bench: Bench) -> None:
    code = """
        def MyAgent(prompt, workspace):
            for header in ({"op": "fly"}, {}, {"op": "exec"}, {"op": "exec", "command": "x", "timeout": "y"},
                           {"op": "exec", "command": "x", "timeout": float("nan"), "environment": {}, "cwd": None}):
                try:
                    workspace._ask(header).result()
                except ValueError as error:
                    print(error)
    """
    assert (await bench.run(code)).exit_status == 0
    assert bench.printed.count("not a request to a workspace") == 5


async def test_a_forked_process_is_told_that_the_workspace_is_not_its(bench: Bench) -> None:
    code = """
        import os
        def MyAgent(prompt, workspace):
            workspace.exec("true")
            if os.fork() == 0:
                try:
                    workspace.exec("true")
                except RuntimeError as error:
                    print(error, flush=True)
                os._exit(0)
            os.wait()
    """
    assert (await bench.run(code)).exit_status == 0
    assert "not in one forked from it" in bench.printed


async def test_the_worker_can_be_imported_without_effects() -> None:
    assert callable(supervisor.main)


def other_interpreters() -> list[str]:
    names = (f"python3.{minor}" for minor in range(8, 15) if minor != sys.version_info.minor)
    return [name for name in names if is_python(name)]


def is_python(name: str) -> bool:
    try:
        return subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


async def test_other_pythons_of_this_machine_run_agents_too(bench: Bench) -> None:
    """The user's interpreter need not be ours: anything from 3.8 on."""
    found = other_interpreters()
    if not found:
        pytest.skip("no other Python on PATH")
    (bench.folder / "kit").mkdir()
    (bench.folder / "kit" / "a").write_text("hi")
    code = f"""
        import sys
        async def MyAgent(prompt, workspace, log):
            log.usage(turns=1)
            workspace.upload({str(bench.folder / "kit")!r}, "kit")
            workspace.download("kit", {str(bench.folder / "back")!r})
            lines = [line async for line in workspace.stream("cat kit/a; echo; echo end >&2")]
            print(sys.version_info[1], workspace.exec("cat kit/a").stdout, *lines)
    """
    for name in found:
        where = await anyio.run_process([name, "-c", "import sys; print(sys.executable)"])
        result = await bench.run(code, python=Path(where.stdout.decode().strip()))
        assert (result.exit_status, result.usage) == (0, {"turns": 1}), (name, result.message)
        assert bench.printed.endswith(f"{name.rpartition('.')[2]} hi hi end\n")
        assert (bench.folder / "back" / "a").read_text() == "hi"


async def test_lines_come_while_the_command_runs_from_both_of_its_streams(bench: Bench) -> None:
    code = """
        def MyAgent(prompt, workspace):
            wait = 'until test -e go; do sleep 0.05; done'
            lines = workspace.stream('echo one; echo two >&2; ' + wait + '; printf three; exit 4')
            for line in lines:
                print(line)
            print(lines.exit_status)
    """
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.run, code)
        await until(lambda: bench.printed == "one\ntwo\n", lambda: bench.printed)
        (bench.workspace.root / "go").touch()
    assert bench.printed == "one\ntwo\nthree\n4\n"


async def test_lines_come_to_asynchronous_code_several_commands_at_once(bench: Bench) -> None:
    code = """
        import asyncio
        async def MyAgent(prompt, workspace):
            async def count(n):
                return [line async for line in workspace.stream(f"for i in 1 2 3; do echo {n}.$i; sleep 0.05; done")]
            print(*await asyncio.gather(*(count(n) for n in range(5))))
            late = workspace.stream("echo x; sleep 60", timeout=0.5)
            print([line async for line in late], late.exit_status)
    """
    assert (await bench.run(code)).exit_status == 0
    counted = " ".join(str([f"{n}.{i}" for i in (1, 2, 3)]) for n in range(5))
    assert bench.printed == f"{counted}\n['x'] None\n"


async def test_a_long_output_is_read_whole(bench: Bench) -> None:
    code = """
        def MyAgent(prompt, workspace):
            total = 0
            for number, line in enumerate(workspace.stream("seq 200000"), start=1):
                assert line == str(number), (line, number)
            print(number)
    """
    assert (await bench.run(code)).exit_status == 0
    assert bench.printed == "200000\n"


@pytest.mark.parametrize(
    "code",
    [
        "for line in workspace.stream('echo $$; sleep 600'): break",
        "async for line in workspace.stream('echo $$; sleep 600'): break",
        "await asyncio.wait_for(workspace.aexec('echo $$ > pid; sleep 600'), 0.5)",
    ],
)
async def test_a_command_that_nobody_waits_for_any_more_is_killed(bench: Bench, code: str) -> None:
    whole = f"""
        import asyncio
        async def MyAgent(prompt, workspace):
            try:
                {code}
                workspace.write("pid", line)
            except asyncio.TimeoutError:
                pass
            await workspace.aexec("until test -e go; do sleep 0.05; done")
    """
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.run, whole)
        file = bench.workspace.root / "pid"
        await until(lambda: file.exists() and file.read_text() and not is_alive(int(file.read_text())), "it lives")
        (bench.workspace.root / "go").touch()


async def test_a_fault_of_a_stream_is_raised_where_its_lines_are_read(bench: Bench) -> None:
    bench.workspace.fault = Refused("no more commands")
    result = await bench.run("def MyAgent(prompt, workspace):\n    for line in workspace.stream('echo x'): print(line)")
    assert result.message.endswith("WorkspaceError: no more commands")


async def test_the_workspaces_environment_is_every_commands_and_a_call_may_say_otherwise(bench: Bench) -> None:
    code = """
        def MyAgent(prompt, workspace):
            workspace.environment["A"] = "it's"
            workspace.environment.update(B="b")
            print(workspace.exec('echo "$A $B"', environment={"B": "c"}).stdout, *workspace.stream('echo "$A $B"'))
    """
    await bench.run(code)
    assert bench.printed == "it's c\n it's b\n"


async def test_files_and_folders_go_to_the_devbox_and_come_back(bench: Bench) -> None:
    here = bench.folder / "here"
    (here / "sub").mkdir(parents=True)
    (here / "sub" / "data").write_bytes(bytes(range(256)))
    (here / "tool").write_text("#!/bin/sh\necho ran")
    (here / "tool").chmod(0o755)
    (here / "link").symlink_to("sub/data")
    code = f"""
        import os
        async def MyAgent(prompt, workspace):
            here = {str(here)!r}
            workspace.upload(here, "there/deep")
            print(workspace.exec("there/deep/tool").stdout, workspace.exec("readlink there/deep/link").stdout)
            await workspace.aupload(here + "/tool", "bin/")
            print(workspace.exec("bin/tool").stdout)
            await workspace.adownload("there/deep", here + "2")
            workspace.download("there/deep/sub/data", here + "3/data")
            workspace.download("bin/tool", here + "3")
            print(sorted(os.listdir(here + "2")), sorted(os.listdir(here + "3")), os.readlink(here + "2/link"))
            for name in ("2/sub/data", "3/data"):
                assert open(here + name, "rb").read() == bytes(range(256))
            for wrong in (lambda: workspace.download("gone", here), lambda: workspace.upload(here + "/gone", "x")):
                try:
                    wrong()
                except FileNotFoundError:
                    print("not there")
    """
    result = await bench.run(code)
    assert result.exit_status == 0, result.message
    names = "['link', 'sub', 'tool'] ['data', 'tool'] sub/data"
    assert bench.printed == f"ran\n sub/data\n\nran\n\n{names}\nnot there\nnot there\n"
    assert (await bench.workspace.exec(f"ls {bench.workspace.scratch}")).stdout == ""


async def test_nothing_that_is_downloaded_gets_out_of_its_folder(bench: Bench) -> None:
    """The archive's content is made in the devbox: two links may lead out together."""
    (bench.workspace.root / "bait").mkdir()
    code = f"""
        import io, os, tarfile
        def MyAgent(prompt, workspace):
            def evil(path):
                data = io.BytesIO()
                with tarfile.open(fileobj=data, mode="w") as tar:
                    def add(name, link=None, content=b"bad"):
                        member = tarfile.TarInfo(name)
                        if link:
                            member.type, member.linkname = tarfile.SYMTYPE, link
                            return tar.addfile(member)
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
                    add("../escaped"); add("/tmp/never"); add("out", "/etc"); add("d", "."); add("d/e", "..")
                    add("e/escaped"); add("fine", content=b"good")
                return data.getvalue()
            workspace.read = evil
            workspace.download("bait", {str(bench.folder / "got")!r})
    """
    result = await bench.run(code)
    assert result.exit_status == 0, result.message
    assert (bench.folder / "got" / "fine").read_text() == "good"
    assert not [path for path in bench.folder.rglob("escaped") if (bench.folder / "got") not in path.parents]
    assert not (bench.folder / "got" / "out").exists()


async def test_the_log_writes_lines_with_facts(bench: Bench) -> None:
    code = """
        def MyAgent(prompt, log):
            log("plain", 1)
            log.info("read %s of %d", "a", 3, lines=4)
            log.warning("100%"); log.debug("x %d", "y"); log.error(KeyError("z"))
            try:
                raise ValueError("no")
            except ValueError:
                log.exception("failed")
    """
    await bench.run(code)
    lines = bench.printed.splitlines()
    assert lines[:5] == ["plain 1", "info: read a of 3 lines=4", "warning: 100%", "debug: x %d y", "error: 'z'"]
    assert (lines[5], lines[-1]) == ("error: failed", "ValueError: no")


async def test_usage_that_an_agent_noted_counts_even_if_it_crashes(bench: Bench) -> None:
    code = """
        import os
        def MyAgent(prompt, log):
            for _ in range(3):
                log.usage(input_tokens=100, output_tokens=10, cost_usd=0.25, turns=1)
            log.exit_reason("gave up")
            os._exit(3)
    """
    result = await bench.run(code)
    assert result.exit_status == 3
    assert result.usage == {"input_tokens": 300, "output_tokens": 30, "cost_usd": 0.75, "turns": 3}
    assert result.exit_reason == "gave up"


async def test_returned_usage_wins_over_noted_usage(bench: Bench) -> None:
    code = """
        def MyAgent(prompt, log):
            log.usage(input_tokens=100, turns=2)
            log.exit_reason("noted")
            return {"usage": {"input_tokens": 150}, "exit_reason": "returned"}
    """
    assert await bench.run(code) == Result(
        exit_status=0, usage={"input_tokens": 150, "turns": 2}, exit_reason="returned"
    )


async def test_a_sum_that_is_too_large_is_no_usage_and_half_a_character_no_reason(bench: Bench) -> None:
    code = """
        def MyAgent(prompt, log):
            for _ in range(2):
                log.usage(input_tokens=9 * 10**14, turns=1)
            return {"exit_reason": " \\ud83d oops "}
    """
    assert await bench.run(code) == Result(exit_status=0, usage={"turns": 2}, exit_reason="? oops")


async def test_a_usage_that_there_is_not_is_the_agents_mistake(bench: Bench) -> None:
    result = await bench.run("def MyAgent(prompt, log): log.usage(tokens=1)")
    assert result.exit_status == 1
    assert "tokens" in result.message


IMPORTED: Final = """
    import os
    with open(__file__ + ".loads", "a") as file: file.write(f"{os.getpid()}\\n")
    def MyAgent(prompt): print(os.getpid(), os.environ["SWEEP_SCENARIO"])
"""


async def test_attempts_that_follow_find_the_agent_loaded_and_each_has_a_process_of_its_own(bench: Bench) -> None:
    agent, loads, children = bench.load(IMPORTED), bench.folder / "my_agent.py.loads", living_children()
    for _ in range(2):
        await agent.solve(bench.make_task(), bench.workspace, bench.log.extend)
    await until(lambda: len(loads.read_text().split()) == 4, "four workers do not load")
    await agent.solve(bench.make_task(), bench.workspace, bench.log.extend)
    *earlier, last = [line.split()[0] for line in bench.printed.splitlines()]
    assert last in set(loads.read_text().split()[:4]) - set(earlier)
    assert len(set(earlier)) == 2
    await agent.aclose()
    assert living_children() == children


async def test_a_worker_that_died_while_it_waited_is_not_used(bench: Bench) -> None:
    agent, loads = bench.load(IMPORTED), bench.folder / "my_agent.py.loads"
    for _ in range(2):
        await agent.solve(bench.make_task(), bench.workspace, bench.log.extend)
    await until(lambda: len(loads.read_text().split()) == 4, "four workers do not load")
    for pid in set(loads.read_text().split()) - {line.split()[0] for line in bench.printed.splitlines()}:
        os.kill(int(pid), signal.SIGKILL)
    await until(lambda: not any(worker.is_alive for worker in agent._ready.spares), "spare workers live")
    assert (await agent.solve(bench.make_task(), bench.workspace, bench.log.extend)).exit_status == 0


async def test_an_agent_that_ends_itself_with_words_while_it_is_loaded_refuses_with_them(bench: Bench) -> None:
    with pytest.raises(UsageError, match=r"my_agent.py:MyAgent: it needs a package\Z"):
        await bench.load("import sys\nsys.exit('it needs a package')").check()


@pytest.mark.parametrize("reference", ["./mine.py:MyAgent", "mine:MyAgent"])
async def test_a_package_called_agents_and_a_folder_of_agent_files_do_not_meet(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    """`agents` is what the package openai-agents is imported as, and where users keep their agent files."""
    packages, place = bench.folder / "site-packages", bench.folder / "place"
    for folder in (packages / "agents", packages / "openai_agents-1.0.dist-info", place / "agents"):
        folder.mkdir(parents=True)
    (packages / "agents" / "__init__.py").write_text("NAME = 'theirs'")
    (packages / "openai_agents-1.0.dist-info" / "METADATA").write_text("Name: openai-agents\nVersion: 1.0\n")
    (place / "agents" / "other.toml").write_text("run = 'true'")
    (place / "mine.py").write_text(
        "import agents, importlib.metadata as m\ndef MyAgent(prompt): print(agents.NAME, m.version('openai-agents'))\n"
    )
    monkeypatch.chdir(place)
    environ = {**os.environ, "PYTHONPATH": str(packages)}
    search = (Path("agents"),)
    agent = load(reference, python=Path(sys.executable), search=search, settings={}, environ=environ)
    await check(agent)
    assert (await agent.solve(bench.make_task(), bench.workspace, bench.log.extend)).exit_status == 0
    assert bench.printed == "theirs 1.0\n"
    other = load("other", python=None, search=search, settings={}, environ=environ)
    assert other.name == "other"


PREPARING = """
import os
class MyAgent:
    def __init__(self, workspace, log, time_limit):
        self.workspace, self.log, self.time_limit = workspace, log, time_limit
    async def prepare_devbox(self):
        done = await self.workspace.aexec("echo prepared >>steps")
        if done.exit_status != 0 or os.path.exists(os.path.join(self.workspace.working_directory, "broken")):
            raise RuntimeError("no such package")
        self.process = os.getpid()
    async def run(self):
        assert self.process == os.getpid()
        await self.workspace.aexec("echo ran >>steps")
        return {"version": "7", "is_timed_out": self.time_limit == 5}
"""


async def test_a_class_prepares_its_devbox_before_its_time_begins_and_runs_as_the_same_instance(bench: Bench) -> None:
    agent, task = bench.load(PREPARING), bench.make_task(time_limit=5)
    await agent.prepare(task, bench.workspace)
    steps = bench.workspace.root / "steps"
    assert steps.read_text() == "prepared\n"
    result = await agent.solve(task, bench.workspace, bench.log.extend)
    assert steps.read_text() == "prepared\nran\n"
    assert (result.exit_status, result.version, result.message) == (None, "7", "")

    again = await agent.solve(bench.make_task(), bench.workspace, bench.log.extend)
    assert steps.read_text() == "prepared\nran\n" * 2, "what nobody prepared is prepared first"
    assert again.exit_status == 0
    await agent.prepare(bench.make_task(), bench.workspace)
    [waiting] = agent._ready.prepared.values()
    await agent.aclose()
    assert not waiting.is_alive


async def test_a_devbox_that_cannot_be_prepared_is_the_set_ups_failure(bench: Bench) -> None:
    (bench.workspace.root / "broken").touch()
    with pytest.raises(AgentSetupFailed, match="RuntimeError: no such package"):
        await bench.load(PREPARING).prepare(bench.make_task(), bench.workspace)
