"""References to agents: the argument of `--agent`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import orchestrator
from orchestrator.agentkit.agent import Agent
from orchestrator.agentkit.file.command import CommandAgent
from orchestrator.agentkit.host.host_agent import HostCommandAgent
from orchestrator.agentkit.loader import available, builtin_folder, check, find, lacking, load, supply
from orchestrator.agentkit.python.python_agent import PythonAgent
from orchestrator.core.errors import UsageError

pytestmark = pytest.mark.anyio

AGENT = "class MyAgent:\n    def __init__(self, prompt): ...\n    def run(self): ...\n"


def load_agent(
    reference: str,
    *,
    search: tuple[Path, ...] = (),
    settings: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    python: Path | None = None,
    model: str | None = None,
) -> Agent:
    environ = os.environ if environ is None else environ
    return load(reference, python=python, search=search, settings=settings or {}, environ=environ, model=model)


def refusal(reference: str, **rest: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load_agent(reference, **rest)
    return caught.value.message


def define(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.toml"
    file.write_text(text)
    return file


def test_built_in_agents_have_names() -> None:
    oracle, nop = load_agent("oracle"), load_agent("nop")
    assert (oracle.name, oracle.where, oracle.needs_reference) == ("oracle", "devbox", True)
    assert (nop.name, nop.where, nop.needs_reference) == ("nop", "devbox", False)


def test_every_built_in_agent_can_be_read() -> None:
    listed = available(())
    assert {"oracle", "nop", "command", "mini"} <= {each.name for each in listed}
    for each in listed:
        assert each.file is not None
        assert each.file.is_file()
        assert not each.problem
        assert each.agent is not None
        assert each.agent.description


def test_an_agent_file_wins_over_python_that_comes_with_us(tmp_path: Path) -> None:
    define(tmp_path, "mini", 'run = "echo mine"')
    [mini] = [each for each in available((tmp_path,)) if each.name == "mini"]
    assert mini.agent == find("mini", (tmp_path,)) != find("mini", ())
    assert isinstance(load_agent("mini", search=(tmp_path,)), CommandAgent)


def test_an_agent_of_the_user_wins_over_ours_of_the_same_name(tmp_path: Path) -> None:
    define(tmp_path / "agents", "nop", 'run = "echo mine"')
    agent = load_agent("nop", search=(tmp_path / "agents",))
    assert isinstance(agent, CommandAgent)
    assert agent.definition.run == "echo mine"
    assert agent.digest != load_agent("nop").digest


def test_a_broken_file_of_the_user_is_listed_as_broken_and_stops_nobody_else(tmp_path: Path) -> None:
    file = define(tmp_path / "agents", "mine", 'rum = "x"')
    search = (tmp_path / "agents",)
    assert load_agent("oracle", search=search).name == "oracle"
    [mine] = [each for each in available(search) if each.name == "mine"]
    assert (mine.file, mine.agent) == (file, None)
    assert "did you mean run?" in mine.problem
    assert "did you mean run?" in refusal("mine", search=search)


def test_an_agent_can_be_given_by_path(tmp_path: Path) -> None:
    file = define(tmp_path, "mine", 'run = "echo mine"')
    assert load_agent(str(file)).name == "mine"
    assert "cannot be read" in refusal(str(tmp_path / "gone.toml"))


def test_a_command_is_what_stands_after_the_colon_to_the_letter() -> None:
    agent = load_agent("command:echo 'a:b' | tee $HOME/c")
    assert isinstance(agent, CommandAgent)
    assert agent.definition.run == "echo 'a:b' | tee $HOME/c"
    assert agent.name == "command:echo 'a:b' | tee $HOME/c"


@pytest.mark.parametrize("reference", ["command", "command:", "command: "])
def test_a_command_without_a_command_shows_how(reference: str) -> None:
    assert "--agent 'command:SHELL COMMAND'" in refusal(reference)


def test_an_unknown_agent_is_answered_with_near_names_all_names_and_all_forms() -> None:
    message = refusal("orakle")
    assert "there is no such agent. Did you mean oracle?" in message
    assert "./file.py:CLASS" in message
    message = refusal("xyz")
    assert "By name there are " in message
    assert "nop, " in message


@pytest.mark.parametrize("reference", ["", ":", "oracle:", "my-module:Agent", "file.py:not valid", "../oracle", "a b"])
def test_an_invalid_reference_is_an_unknown_agent(reference: str) -> None:
    assert "there is no such agent" in refusal(reference)


@pytest.mark.parametrize(
    ("required", "says"),
    [
        ('"C", "A_KEY"', "needs A_KEY: export it, or put it in a file and give --env-file FILE"),
        ('"C", ["A_KEY", "B_KEY"]', "needs A_KEY or B_KEY: export one of them, or put it in a file and"),
        ('"C", ["A_KEY", "B_KEY"], "D"', "needs A_KEY or B_KEY, and D: export them, or put them in a file and"),
    ],
)
def test_all_missing_variables_are_named(tmp_path: Path, required: str, says: str) -> None:
    file = define(tmp_path, "mine", f'run = "x"\n[env]\nrequired = [{required}]\nsecret = ["A_KEY"]')
    agent = load_agent(str(file), environ={"C": "1", "B_KEY": ""})
    with pytest.raises(UsageError) as caught:
        supply(agent)
    assert says in caught.value.message


def test_one_variable_of_a_group_is_enough(tmp_path: Path) -> None:
    file = define(tmp_path, "mine", 'run = "x"\n[env]\nrequired = [["A", "B"], "C"]')
    agent = load_agent(str(file), environ={"B": "1", "C": "2"})
    assert lacking(agent) == []
    assert supply(agent) is agent


def test_missing_variables_come_from_the_endpoints_secrets(tmp_path: Path) -> None:
    file = define(tmp_path, "mine", 'run = "x"\n[env]\nrequired = ["A", ["B", "C"]]\nsecret = ["A", "B", "C"]')
    agent = supply(load_agent(str(file), environ={"A": "1"}), {"A", "C", "D"})
    assert agent.endpoint_secrets == {"C": "C"}
    assert agent.secrets == {"A": "1"}
    with pytest.raises(UsageError, match="needs B or C"):
        supply(load_agent(str(file), environ={"A": "1"}), {"D"})


def test_a_version_after_an_at_sign_overrides_the_one_in_the_file(tmp_path: Path) -> None:
    file = define(tmp_path / "agents", "mine", 'version = "1.0"\ninstall = "y"\nrun = "x"')
    for reference in ("mine@2.0-rc.1", f"{file}@2.0-rc.1"):
        agent = load_agent(reference, search=(tmp_path / "agents",))
        plain = load_agent("mine", search=(tmp_path / "agents",))
        assert (agent.name, agent.version, plain.version) == (reference, "2.0-rc.1", "1.0")
        assert agent.digest != plain.digest
        assert agent.install is not None
        assert plain.install is not None
        assert agent.install.environment == {"SWEEP_AGENT_VERSION": "2.0-rc.1"}
        assert agent.install.key != plain.install.key


def test_a_version_and_an_argument_go_together(tmp_path: Path) -> None:
    define(tmp_path, "mine", 'version = "1.0"\nargument = "COMMAND"')
    agent = load_agent("mine@2:echo a@b:c", search=(tmp_path,))
    assert isinstance(agent, CommandAgent)
    assert (agent.name, agent.version, agent.definition.run) == ("mine@2:echo a@b:c", "2", "echo a@b:c")


def test_an_agent_without_versions_refuses_one() -> None:
    assert "nop has no versions" in refusal("nop@2")
    assert "there is no such agent" in refusal("claude@2")


def test_a_model_is_the_arms_else_the_files_else_missed_where_one_is_required(tmp_path: Path) -> None:
    define(tmp_path, "must", 'run = "x"\n[model]\nrequired = true')
    define(tmp_path, "may", 'run = "x"\n[model]\nrequired = true\ndefault = "small"')
    assert "must needs a model: --model NAME" in refusal("must", search=(tmp_path,))
    chosen = {
        (reference, model): load_agent(reference, search=(tmp_path,), model=model)
        for reference, model in (("must", "large"), ("may", "large"), ("may", None))
    }
    models = [agent.model for agent in chosen.values() if isinstance(agent, CommandAgent)]
    assert models == ["large", "large", "small"]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Models.example.com/v1", "models.example.com"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://user:key@models.example.com:443/", "models.example.com:443"),
        ("http://[::1]:8080/v1", "[::1]:8080"),
        ("models.example.com:8080", "models.example.com:8080"),
    ],
)
def test_a_host_may_be_named_by_the_url_in_a_variable(tmp_path: Path, url: str, host: str) -> None:
    text = 'run = "x"\n[env]\noptional = ["A", "B"]\n[network]\nhosts = ["api.example.com", "$A", "$B"]'
    file = define(tmp_path, "mine", text)
    assert load_agent(str(file), environ={"A": url}).hosts == ("api.example.com", host)


def test_a_url_that_is_none_is_named_by_its_variable_and_not_repeated(tmp_path: Path) -> None:
    file = define(tmp_path, "mine", 'run = "x"\n[env]\nsecret = ["A"]\n[network]\nhosts = ["$A"]')
    message = refusal(str(file), environ={"A": "http://:hidden"})
    assert "mine: A is to be a URL" in message
    assert "hidden" not in message


def test_secrets_are_kept_apart_from_the_rest_of_the_environment_and_out_of_sight(tmp_path: Path) -> None:
    file = define(tmp_path, "mine", 'run = "x"\n[env]\nrequired = ["A"]\noptional = ["B", "D"]\nsecret = ["B", "C"]')
    agent = load_agent(str(file), environ={"A": "plain", "B": "hidden-b", "C": "hidden-c", "E": "other"})
    assert isinstance(agent, CommandAgent)
    assert agent.secrets == {"B": "hidden-b", "C": "hidden-c"}
    assert agent.environment == {"A": "plain"}
    assert "hidden" not in repr(agent)


def test_an_agent_of_this_machine_gets_no_secret_of_the_endpoint(tmp_path: Path) -> None:
    text = 'run = "x"\nwhere = "host"\n[env]\nrequired = ["A"]\n[network]\nhosts = ["api.example.com"]'
    agent = load_agent(str(define(tmp_path, "mine", text)), environ={})
    assert isinstance(agent, HostCommandAgent)
    assert (agent.where, agent.hosts) == ("host", ())
    with pytest.raises(UsageError, match="mine needs A: export it"):
        supply(agent, {"A"})


@pytest.mark.parametrize("reference", ["file.py:MyAgent", "host.toml"])
def test_variables_from_a_secrets_file_are_secret_for_every_agent(tmp_path: Path, reference: str) -> None:
    (tmp_path / "file.py").write_text(AGENT)
    define(tmp_path, "host", 'run = "x"\nwhere = "host"')
    environ = {**os.environ, "FROM_A_FILE": "hunter2", "OTHER": "plain"}
    agent = load(
        f"{tmp_path}/{reference}", python=None, search=(), settings={}, environ=environ, secret={"FROM_A_FILE"}
    )
    assert agent.secrets.get("FROM_A_FILE") == "hunter2"
    assert "OTHER" not in agent.secrets


def test_settings_for_an_agent_that_takes_none_are_refused() -> None:
    assert "nop takes no settings (depth)" in refusal("nop", settings={"depth": 3})


async def test_a_class_of_a_file_is_an_agent(tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text(AGENT)
    agent = load_agent(f"{tmp_path}/file.py:MyAgent", settings={"depth": 3})
    assert isinstance(agent, PythonAgent)
    assert (agent.where, agent.needs_reference, agent.settings) == ("host", False, {"depth": 3})
    await check(agent)


async def test_a_class_of_a_module_is_an_agent(tmp_path: Path) -> None:
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text(AGENT)
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    agent = load_agent("some_package.module:MyAgent", environ=environ)
    await check(agent)
    (package / "module.py").write_text(AGENT + "# changed\n")
    assert load_agent("some_package.module:MyAgent", environ=environ).digest != agent.digest


async def test_agents_that_need_no_check_pass_it() -> None:
    await check(load_agent("nop"))


def test_a_file_that_is_not_there_is_named_with_the_one_that_is(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    assert f"did you mean {tmp_path}/agent.py?" in refusal(f"{tmp_path}/agnet.py:MyAgent")


def test_a_file_without_a_class_is_refused_with_the_way_to_name_one() -> None:
    assert "--agent ./file.py:CLASS" in refusal("./file.py")


@pytest.mark.parametrize(
    ("code", "entry", "says"),
    [
        (AGENT, "MyAgnet", "has no 'MyAgnet'; did you mean MyAgent?"),
        ("class A:\n    def __init__(self, prompt): ...\n", "A", "none of run, __call__, solve"),
        ("def f(prompt, temperature): ...\n", "f", "f asks for temperature; what it can ask for by name is prompt,"),
        ("class A:\n    def __init__(self, p, /): ...\n    run = None\n", "A", "A asks for p;"),
        ("A = 3\n", "A", "neither a class nor a function"),
        ("import json\nraise ValueError('no key')\n", "A", "ValueError: no key"),
        ("def f(:\n", "f", "SyntaxError"),
        ("import os\nos._exit(0)\n", "A", "ended before"),
        ("import missing_dependency\n", "A", "No module named 'missing_dependency'"),
    ],
)
async def test_code_that_is_no_agent_is_refused_by_check(tmp_path: Path, code: str, entry: str, says: str) -> None:
    (tmp_path / "file.py").write_text(code)
    with pytest.raises(UsageError) as caught:
        await check(load_agent(f"{tmp_path}/file.py:{entry}"))
    assert says in caught.value.message


async def test_a_module_that_is_not_there_is_named_with_the_interpreter_that_looked() -> None:
    with pytest.raises(UsageError, match="there is no module 'no_such_package' for"):
        await check(load_agent("no_such_package.module:Agent"))


def test_an_interpreter_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text(AGENT)
    assert "there is no such program" in refusal(f"{tmp_path}/file.py:MyAgent", python=tmp_path / "python")


async def test_a_program_that_is_no_python_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text(AGENT)
    (tmp_path / "python").write_text("#!/bin/sh\necho this is no python\nexit 3\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(UsageError, match="this is no python"):
        await check(load_agent(f"{tmp_path}/file.py:MyAgent", python=tmp_path / "python"))
    (tmp_path / "python").write_bytes(b"\0\0\0\0")
    with pytest.raises(UsageError, match="cannot be started"):
        await check(load_agent(f"{tmp_path}/file.py:MyAgent", python=tmp_path / "python"))


def test_nothing_of_ours_is_importable_as_agents() -> None:
    """Loading every built-in agent leaves `sys.path` alone and imports no package named `agents`."""
    code = (
        "import sys; before = list(sys.path)\n"
        "from orchestrator.agentkit.loader import available, load\n"
        "for name in [each.name for each in available(())]:\n"
        "    reference = 'command:true' if name == 'command' else name\n"
        "    load(reference, python=None, search=(), settings={}, environ={}, model='m')\n"
        "assert sys.path == before and 'agents' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(orchestrator.__file__).parent)


def test_an_installed_package_finds_its_agents_below_itself(tmp_path: Path) -> None:
    """The layout of the wheel: the folder is data inside our package, and nothing lies beside it."""
    package = tmp_path / "orchestrator"
    for part in ("agentkit", "common", "core"):
        shutil.copytree(Path(orchestrator.__file__).parent / part, package / part)
    shutil.copy(orchestrator.__file__, package / "__init__.py")
    shutil.copytree(builtin_folder(), package / "agents")
    code = "from orchestrator.agentkit.loader import available; print(*(each.file for each in available(())))"
    listed = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert f"{package}/agents/oracle.toml" in listed.stdout.split()


async def test_a_package_named_agents_is_the_users_own(tmp_path: Path) -> None:
    """`import agents` in an agent finds the installed package, though a folder of agent files lies beside it."""
    installed = tmp_path / "installed" / "agents"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("Runner = 42\n")
    define(tmp_path / "agents", "mine", 'run = "x"')
    (tmp_path / "file.py").write_text("from agents import Runner\nassert Runner == 42\n" + AGENT)
    environ = {**os.environ, "PYTHONPATH": str(installed.parent)}
    await check(load_agent(f"{tmp_path}/file.py:MyAgent", environ=environ))
