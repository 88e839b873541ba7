"""Names at a shell's prompt: all that are harmless are offered, soon, and nothing is ever printed in their place."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from shutil import which
from typing import Any, Final

import orjson
import pytest

from orchestrator.agentkit.loader import available
from orchestrator.commands import AGENTS, completion, docs

from .test_help import COMMANDS, TREE

#: The beginnings of the help of arguments that are names.
KINDS: Final = {
    "The sweep's name, or its folder.": completion.RUN,
    "Sweeps with all their arms": completion.RUN,
    "A scenario's name or id": completion.SCENARIO,
    "A name, NAME@VERSION, or the path of a .toml.": completion.AGENT,
    "A topic.": completion.TOPIC,
}
#: A shell would run a part of these.
HOSTILE: Final = ("$(touch pwned)", "`touch pwned`", "a;touch pwned", "\\$(touch pwned)", "a\nb", "'a'", "\x1b[2J")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with two sweeps, one of them of hostile names, and one that is damaged."""
    for name, scenarios, arms in (
        ("night", ("ant", "bee", *HOSTILE), ("fast", "slow", *HOSTILE)),
        ("noon", ("cat",), ("fast",)),
    ):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        manifest = {
            "scenarios": {f"scn_{number}": {"name": each} for number, each in enumerate(scenarios)},
            "config": {"arms": [{"name": arm} for arm in arms]},
        }
        (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    for name in ("damaged", *(each.replace("/", "") for each in HOSTILE)):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "manifest.json").write_text("{")
    os.utime(tmp_path / "runs" / "night" / "manifest.json", (2e9, 2e9))
    return tmp_path


def pressed(desk: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What the program prints when a shell asks it."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(desk), **variables}
    return subprocess.run(
        [Path(sys.executable).parent / "sweep"],
        cwd=desk,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("show ", ["damaged", "night", "noon"]),
        ("logs ni", ["night"]),
        ("show night ", ["ant", "bee"]),
        ("show --json runs/night --trial 2 b", ["bee"]),
        ("export noon --to csv --arm ", ["fast"]),
        ("show --arm ", ["fast", "slow"]),
        ("status --runs elsewhere ", []),
        ("show damaged ", []),
        ("run six -a open", ["opencode", "openhands"]),
        ("agents show orac", ["oracle"]),
    ],
)
def test_harmless_names_are_offered_and_mistakes_are_silent(desk: Path, line: str, offered: list[str]) -> None:
    words = f"sweep {line}"
    asked = {"COMP_WORDS": words.replace(" ", "\n"), "COMP_CWORD": str(words.count(" "))}
    ended = pressed(desk, {"_SWEEP_COMPLETE": "complete_bash", **asked})
    assert (ended.stdout.split(), ended.stderr) == (offered, "")
    ended = pressed(desk, {"_SWEEP_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": words})
    listed = "\n".join(f'"{each}"' for each in offered)
    assert ended.stderr == ""
    if line != "show damaged ":  # an answer that cannot be found is no answer
        assert ended.stdout == (f"_arguments '*: :(({listed}))'" if offered else "_files")


def test_commands_and_options_are_offered_too(desk: Path) -> None:
    def offered(*words: str) -> list[str]:
        asked = {"COMP_WORDS": "\n".join(["sweep", *words]), "COMP_CWORD": str(len(words))}
        ended = pressed(desk, {"_SWEEP_COMPLETE": "complete_bash", **asked})
        assert ended.stderr == ""
        return ended.stdout.split()

    assert offered("sho") == ["show"]
    assert offered("show", "--cs") == ["--csv"]


@pytest.mark.skipif(which("bash") is None, reason="there is no bash")
def test_the_script_that_is_installed_completes_in_a_real_shell(desk: Path) -> None:
    typed = 'eval "$(sweep --show-completion)"; COMP_WORDS=(sweep show n); COMP_CWORD=2; _sweep_completion sweep'
    ended = subprocess.run(
        ["bash", "--norc", "-c", f'{typed}; printf "%s\\n" "${{COMPREPLY[@]}}"'],
        cwd=desk,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(desk)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (ended.stdout.split(), ended.stderr) == (["night", "noon"], "")


def test_what_is_known_of_commands_without_loading_them_is_what_they_take() -> None:
    def arguments(command: Any) -> list[str]:
        found = []
        for each in command.params:
            if each.param_type_name == "argument":
                kinds = [kind for words, kind in KINDS.items() if (each.help or "").startswith(words)]
                found += kinds * (9 if each.nargs < 0 else 1)
        return found

    taking = {name: arguments(command) for name, command in COMMANDS.items()}
    assert {name: tuple(kinds) for name, kinds in taking.items() if kinds} == dict(completion.ARGUMENTS)
    flags = {
        option
        for name in completion.ARGUMENTS
        for each in COMMANDS[name].params
        if getattr(each, "is_flag", False)
        for option in each.opts
    }
    assert flags <= completion.FLAGS
    assert {name for name, command in TREE.commands.items() if hasattr(command, "commands")} == completion.GROUPS


def test_every_agent_that_has_a_name_and_every_topic_is_offered() -> None:
    assert {each.name for each in available(AGENTS)} == {*completion.agents()}
    assert docs.topics() == sorted(completion.topics())
