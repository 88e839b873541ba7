"""The README and the manual: what they name exists, what they say to type is understood, their lists are complete."""

import re
import shlex
import tomllib
from enum import StrEnum
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import Any, Final

import pytest

from orchestrator.agentkit.file.definition import parse_definition
from orchestrator.agentkit.host import workspace_cli
from orchestrator.agentkit.loader import available
from orchestrator.commands import docs
from orchestrator.core.config import ArmConfig, SweepConfig, Timeouts, load_file, resolve
from orchestrator.core.errors import UsageError
from orchestrator.core.protocol import Isolation
from orchestrator.core.stages import Stage
from orchestrator.testing.chaos.rules import read_rules
from tests.e2e.test_results import FIELDS
from tests.e2e.test_scripts import parse

from .pages import PAGES, README, REASONS, ROOT, TREE, blocks, typed

#: Programs beside `sweep` that examples that are not run may name.
OTHERS: Final = {"docker", "export", "pip"}
TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "integer": int,
    "integer or null": (int, NoneType),
    "number or null": (float, NoneType),
    "text": str,
    "text or null": (str, NoneType),
    "list": list,
    "object": dict,
    "object or null": (dict, NoneType),
}


def rows(text: str) -> list[list[str]]:
    """The cells of a page's tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def commands_of(text: str) -> list[str]:
    """The lines of a page that are our command: in console blocks, in help examples, in tables and sentences."""
    told = [" ".join(line.split()).removesuffix(" --help") for line in re.findall(r"`(sweep [a-z][^`]*)`", text)]
    examples = [line for block in blocks(text, "text") for line in block.lines if line.startswith("sweep ")]
    blocked = [line.removeprefix("scripts/") for line in typed(text) if re.match(r"(scripts/)?sweep ", line)]
    return [*blocked, *(line for line in examples if "OPTIONS" not in line and "COMMAND" not in line), *told]


COMMANDS: Final = sorted({line for text in PAGES.values() for line in commands_of(text) if "--version" not in line})


def options_of(command: Any) -> set[str]:
    """All that the command line understands, whichever command takes it."""
    below = [options_of(each) for each in getattr(command, "commands", {}).values()]
    return {option for parameter in command.params for option in parameter.opts}.union(*below)


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= 9000


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_in_the_manual_can_be_typed(line: str) -> None:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>;")
    lexer.whitespace_split = True
    words = list(takewhile(lambda word: word[0] not in "|>;", lexer))
    try:
        assert parse(words[1:]) is not None
    except Exception as error:
        if type(error).__name__ != "MissingParameter" or f"## {line}\n" not in PAGES["commands"]:  # it is only named
            raise
    if words[1:2] == ["docs"] and words[2:] not in ([], ["TOPIC"], ["[TOPIC]"]):
        assert words[2] in docs.topics()


@pytest.mark.parametrize("page", PAGES)
def test_every_example_is_run_or_says_why_not(page: str) -> None:
    for block in blocks(PAGES[page]):
        if block.info[0] != "console":
            assert block.info[0] in {"text", "toml", "python"}, block
            assert not block.text.startswith("$ "), block
        elif not block.is_run:
            _, marker, reason = block.info
            assert (marker, reason in REASONS) == ("no-run", True), block
            for command, _ in block.steps():
                program = command.split()[0]
                is_ours = program == "sweep" or (program.startswith("scripts/") and (ROOT / program).is_file())
                assert is_ours or program in OTHERS, command


@pytest.mark.parametrize("page", PAGES)
def test_only_examples_that_need_keys_say_so(page: str) -> None:
    """An agent that needs no key has no excuse, and one that does is not run."""
    keyless = {"oracle", "nop"}
    for block in blocks(PAGES[page], "console"):
        agents = {
            agent for command, _ in block.steps() for agent in re.findall(r"--agent ([a-z][\w-]*)(?: |$)", command)
        }
        if block.info[-1] == "keys":
            assert agents
            assert not agents & keyless, block
        elif block.is_run:
            assert agents <= keyless, block


@pytest.mark.parametrize("page", PAGES)
def test_settings_and_sources_in_the_manual_are_well_formed(page: str) -> None:
    for block in blocks(PAGES[page], "toml"):
        tomllib.loads(block.text)
    for block in blocks(PAGES[page], "python"):
        compile(block.text, page, "exec")


def file_of(page: str, name: str) -> str:
    """The text of a file that a page shows."""
    (text,) = [block.text for block in blocks(PAGES[page]) if block.file == name]
    return text


def test_the_manuals_settings_file_is_understood(tmp_path: Path) -> None:
    """All but its agents, which the reader has."""
    (tmp_path / "sweep.toml").write_text(file_of("configuration", "sweep.toml"))
    config = resolve(load_file(tmp_path / "sweep.toml"))
    assert [arm.name for arm in config.arms] == ["oracle", "mine"]


def test_the_manuals_agent_file_is_understood() -> None:
    definition = parse_definition(file_of("agents", "mine.toml"), name="mine", file="agents.md")
    assert definition.env.required == (definition.env.secret,) == (("MY_KEY",),)


def test_the_manuals_chaos_file_is_understood(tmp_path: Path) -> None:
    (tmp_path / "chaos.toml").write_text(file_of("service", "chaos.toml"))
    assert read_rules(tmp_path / "chaos.toml").seed == 7


def test_every_word_for_the_devbox_in_the_manual_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Words of `sweep workspace` are not checked here."""
    (words,) = (line.split()[2] for line in COMMANDS if line.startswith("sweep workspace exec|"))
    for word in words.split("|"):
        with pytest.raises(SystemExit, match=r"^0$"):
            workspace_cli.main([word, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: sweep workspace {word} ")


@pytest.mark.parametrize("name", [each.name for each in available(())])
def test_every_agent_that_comes_with_us_is_among_the_manuals_agents(name: str) -> None:
    assert re.search(rf"`{name}[`:]", PAGES["agents"].partition("\n## ")[0])


@pytest.mark.parametrize("page", PAGES)
def test_every_option_and_file_that_the_manual_names_exists(page: str) -> None:
    others = r"```toml\n.*?```|'command:[^']*'|\$ docker .*?[^\\]\n"  # have other programs' options
    ours = re.sub(others, "", PAGES[page], flags=re.DOTALL)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours))
    of_devboxes = {name for each in workspace_cli.parsers().values() for name in each.format_help().split()}
    assert options - options_of(TREE) - of_devboxes - {"--help", "--max-"} == set()
    paths = set(re.findall(r"`((?:scripts|docker|agents|tests|orchestrator)/[\w./-]+)`", ours))
    for path in paths - {"tests/test.sh"}:  # a scenario's
        if not re.search("[A-Z]{4}", path):
            assert (ROOT / path).exists(), path


def test_the_manual_names_the_files_that_it_is_about() -> None:
    assert "`docker/compose.yaml`" in PAGES["service"]
    assert len(re.findall(r"`orchestrator/[\w/]+\.py`", PAGES["design"])) > 15


def test_the_index_and_the_readme_name_every_topic_and_no_other() -> None:
    topics = [re.sub(r"\[(.*)\]\(\1\.md\)", r"\1", line[2:].partition(":")[0]) for line in PAGES["index"].splitlines()]
    listed = [topic for topic in topics if topic in docs.topics()]
    assert sorted(listed) == docs.topics()
    assert len([line for line in PAGES["index"].splitlines() if line.startswith("- ")]) == len(listed)
    table = README.partition("## Manual")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"`([a-z-]+)`", "".join(row[0] for row in rows(table)))) == docs.topics()


@pytest.mark.parametrize("topic", docs.topics())
def test_every_page_begins_with_its_subject_and_what_it_says_of_it(topic: str) -> None:
    title, empty, summary, *_ = PAGES[topic].splitlines()
    assert (title[:2], empty) == ("# ", "")
    assert re.match(r"[A-Z*`0-9].*", summary)


def test_a_generated_topic_has_no_file() -> None:
    assert [topic for topic in docs.GENERATED if (docs.PAGES / f"{topic}.md").exists()] == []


def test_the_commands_are_all_there_with_every_option_that_help_shows() -> None:
    sections = dict(re.findall(r"^## (.*)\n\n((?:(?!## ).*\n)*)", PAGES["commands"], re.MULTILINE))

    def check(name: str, command: Any) -> None:
        for parameter in command.params:
            if not parameter.hidden and parameter.param_type_name == "option":
                assert all(f"`{option}`" in sections[name] for option in parameter.opts), parameter.opts
                assert parameter.help.split("[")[0].strip("\\ ") in sections[name]
        for word, below in getattr(command, "commands", {}).items():
            check(f"{name} {word}", below)

    check("sweep", TREE)
    assert set(sections) >= {"sweep run", "sweep docs", "sweep agents list"}


def test_the_result_schema_has_every_field_with_its_type() -> None:
    table = {row[0].strip("`"): TYPES[row[1]] for row in rows(PAGES["result-schema"])[1:]}
    assert list(table.items()) == list(FIELDS.items())


def test_the_settings_are_those_of_the_configuration_with_their_defaults() -> None:
    keys = [(row[0].strip("`"), row[1].strip("`")) for row in rows(PAGES["settings"]) if row[0] != "key"]
    names = [name for name in SweepConfig.model_fields if name not in {"benchmark", "arms", "timeouts"}]
    assert [name for name, _ in keys] == [*names, *Timeouts.model_fields, *ArmConfig.model_fields]
    assert ("devboxes", str(SweepConfig.model_fields["devboxes"].default)) in keys
    assert ("boot", str(Timeouts().boot)) in keys


def test_the_events_of_the_output_for_programs_are_all_there() -> None:
    section = PAGES["results"].partition("## Output for programs")[2].partition("\n## ")[0]
    told = [row[0].strip("`") for row in rows(section)[1:]]
    sources = [file for part in ("commands", "view") for file in (ROOT / "orchestrator" / part).glob("*.py")]
    assert set(told) == {name for file in sources for name in re.findall(r'"event": "(\w+)"', file.read_text())}


def test_new_code_touches_as_many_files_as_the_manual_counts() -> None:
    """Each file that a row names, and "the module" that raises, sets or does it."""
    table = [row for row in rows(PAGES["contributing"])[1:] if len(row) == 3]
    assert {row[0] for row in table} >= {"devbox provider", "agent", "output format", "failure class", "stage"}
    for new, count, where in table:
        files = re.findall(r"`[\w/]+\.(?:py|toml)`", where)
        assert int(count) == len(files) + where.count("the module"), new


@pytest.mark.parametrize(("new", "words"), [("stage", Stage), ("devbox provider", Isolation)])
def test_only_files_that_the_manual_counts_name_every_word_of_a_list(new: str, words: type[StrEnum]) -> None:
    (where,) = (row[2] for row in rows(PAGES["contributing"]) if row[0] == new)
    files = [path for path in (ROOT / "orchestrator").rglob("*.py") if "benchmarks" not in path.parts]
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in files}
    names = [f"{words.__name__}.{word.name}" for word in words]
    naming = {path for path, text in texts.items() if all(name in text for name in names)}
    assert naming, "at least the table of what they do"
    assert {path for path in naming if f"`{path}`" not in where} == set()
    (defining,) = (path for path, text in texts.items() if f"class {words.__name__}(" in text)
    assert f"`{defining}`" in where


def test_the_time_limits_are_those_of_the_configuration() -> None:
    told = {row[1].strip("`"): row[2] for row in rows(PAGES["limits-and-budgets"])[1:]}
    defaults = Timeouts()
    assert told.keys() == {f"--timeout-{stage}" for stage in Stage}
    for stage in Stage:
        seconds = getattr(defaults, stage)
        assert told[f"--timeout-{stage}"] == (f"{seconds:g}" if seconds else told[f"--timeout-{stage}"])
    assert told["--timeout-solve"].endswith(f"{defaults.solve_for(None):g}")
    assert told["--timeout-score"].endswith(f"{defaults.score_for(None):g}")


def test_every_environment_variable_of_an_option_is_in_the_configuration() -> None:
    def variables(command: Any) -> set[str]:
        own = {parameter.envvar for parameter in command.params if parameter.envvar}
        return own.union(*(variables(each) for each in getattr(command, "commands", {}).values()))

    assert variables(TREE)
    assert {name for name in variables(TREE) if f"`{name}`" not in PAGES["configuration"]} == set()


def test_an_unknown_topic_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"scorring: there is no such topic\. Did you mean scoring"):
        docs.page("scorring", commands=TREE)
    with pytest.raises(UsageError, match=r"there is no such topic\. `sweep docs` lists all"):
        docs.page("../README", commands=TREE)


def test_the_picture_is_of_a_sweep_under_way_and_loads_nothing_and_photographs_are_small() -> None:
    path, *photographs = re.findall(r"!\[[^]]+\]\((.*?)\)", README)
    assert all((ROOT / each).stat().st_size < 200_000 for each in photographs)
    picture = (ROOT / path).read_text()
    words = " ".join(re.sub(r"<[^>]*>", " ", picture.partition("matrix")[2]).replace("&#160;", " ").split())
    assert "$ sweep run bugfix-mini" in words
    assert re.search(r"\d+/\d+ done · \d+ running · \d+ queued · mean \d\.\d{3}", words)
    assert set(re.findall(r"(?:https?:)?//[\w.]+", picture)) <= {"http://www.w3.org", "https://www.textualize.io"}
