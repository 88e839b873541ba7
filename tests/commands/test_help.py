"""The help: every setting has an option with its default, and every text wraps. A mistake is named as it was typed."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final, get_args

import pytest
import typer
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.cli.options import SETTINGS, reflowed
from orchestrator.core.config import ArmConfig, Panel, SweepConfig, Timeouts
from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import ScoringMode

TREE: Final[Any] = typer.main.get_command(app)
#: Settings that are typed in another way: as an argument, as --agent with --model and --set, and each by itself.
OTHERWISE: Final = {"benchmark", "arms", "timeouts"}


def commands(name: tuple[str, ...] = (), command: Any = TREE) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    yield name, command
    for word, below in getattr(command, "commands", {}).items():
        yield from commands((*name, word), below)


COMMANDS: Final = {" ".join(words): command for words, command in commands() if words != ("workspace",)}


def shown(words: str, width: int) -> str:
    ended = CliRunner().invoke(app, [*words.split(), "--help"], env={"COLUMNS": str(width), "TERM": "dumb"})
    assert ended.exit_code == 0, ended.output
    return re.sub(r"\x1b\[[0-9;]*m", "", ended.output)


def test_each_setting_has_an_option_that_shows_its_default() -> None:
    fields = {**{name: name for name in SweepConfig.model_fields}, **{f"timeout_{n}": n for n in Timeouts.model_fields}}
    assert SETTINGS.keys() == fields.keys() - OTHERWISE
    options = {parameter.name: parameter for parameter in COMMANDS["run"].params}
    for name, setting in SETTINGS.items():
        option, default = options[name], setting.field.default
        assert option.opts[0] == "--" + name.replace("_", "-")
        assert option.default is None, "what is not typed is left to the settings file"
        (told,) = re.findall(r"\\\[default: (.+)\]$", option.help)
        has_words = default is None or default == () or default is False
        assert bool(setting.option.otherwise) == has_words, "words for a default that is no value"
        if isinstance(default, int | float) and not isinstance(default, bool):
            key = setting.key.removeprefix("timeouts.")
            table = Timeouts if "." in setting.key else SweepConfig
            assert getattr(table.model_validate(sample(table) | {key: told}), key) == default
        elif not has_words:
            assert told == str(default)


def sample(table: type[Any]) -> dict[str, Any]:
    return {"benchmark": "b", "arms": [ArmConfig(agent="nop", name="nop")]} if table is SweepConfig else {}


def test_the_options_of_a_sweep_are_in_panels() -> None:
    text = shown("run", 100)
    panels = re.findall(r"^╭─ ([\w ]+) ─", text, re.MULTILINE)
    assert panels == ["Arguments", "Options", *get_args(Panel)]
    for words in ("--isolation local|none", "--lock file|none", "--scoring MODE"):
        assert re.search(re.escape(words).replace(r"\ ", " +"), text)
    assert [mode for mode in ("declared", *ScoringMode) if f"{mode}, " not in SETTINGS["scoring"].option.help] == []
    assert [name for name in SETTINGS if f"--{name.replace('_', '-')} " not in text] == []


@pytest.mark.parametrize("words", COMMANDS)
def test_help_names_no_type_and_puts_no_braces_around_arguments(words: str) -> None:
    assert re.findall(r"<(?:bool|str|int|float|path|file)\b[^>]*>|\{[A-Z]+\}", shown(words, 100)) == []


def test_a_command_without_words_has_an_empty_help() -> None:
    assert reflowed("") == ""


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("words", COMMANDS)
def test_help_texts_wrap_at_the_width_of_the_terminal(words: str, width: int) -> None:
    """No line ends while the next word still has room; indented lines are examples."""
    text = shown(words, width)
    prose = "\n".join(line for line in text.splitlines() if not line.startswith(("╭", "│", "╰")))
    for line, following in pairwise(prose.splitlines()):
        is_text = re.match(r" [^ ]", line) and re.match(r" [^ ]", following) and not line.rstrip().endswith(":")
        if is_text and not line.lstrip().startswith("Usage:"):
            assert len(line.rstrip()) + 1 + len(following.split()[0]) > width - 1, line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("run b -a nop --devboxes 0", "--devboxes 0: must be at least 1."),
        ("run b -a nop --rate abc", "--rate: 'abc' is not a rate. Write for example 20/s or 300/min."),
        ("run b -a nop --timeout-boot soon", "--timeout-boot: 'soon' is not a duration"),
        ("run b -a nop --set x", "--set x: is not a setting. Write KEY=VALUE."),
        ("run b --set x=1", "--set: is for agents named with --agent."),
        ("run b", "sweep run: no agent: name one with --agent"),
        ("run -a nop", "sweep run: benchmark: is required."),
        ("benchmarks list --isolation docker", "--isolation docker: choose local or none."),
        ("check bugfix-mini --lock both", "--lock both: choose file or none."),
        ("serve --isolation docker", "--isolation docker: choose local or none."),
        ("scenario run x -a nop --network all", "--network all: choose agent, none or host."),
        ("resume x --network host", "--network is part of what a sweep is"),
        ("resume x --name y", "--name is part of what a sweep is"),
    ],
)
def test_a_mistake_names_the_option_that_was_typed(words: str, says: str) -> None:
    ended = CliRunner().invoke(app, words.split(), env={"SWEEP_LOCK": ""})
    assert isinstance(ended.exception, UsageError)
    assert says in ended.exception.message


def test_a_mistake_in_the_environment_names_the_variable() -> None:
    ended = CliRunner().invoke(app, ["run", "b", "-a", "nop"], env={"SWEEP_LOCK": "both"})
    assert isinstance(ended.exception, UsageError)
    assert ended.exception.message == "SWEEP_LOCK=both: choose file or none."
