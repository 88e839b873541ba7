"""Contents of an agent file, and messages about those that are refused."""

from pathlib import Path

import pytest

from orchestrator.agentkit.file.definition import Definition, parse_definition, read_definition
from orchestrator.core.errors import UsageError


def parse(text: str) -> Definition:
    return parse_definition(text, name="mine", file="agents/mine.toml")


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(text)
    return caught.value.message


def test_a_file_with_nothing_but_run_is_an_agent() -> None:
    definition = parse('run = "make agent"')
    assert (definition.name, definition.where, definition.run) == ("mine", "devbox", "make agent")
    assert definition.install is None
    assert definition.time_limit is None
    assert not definition.reference_output


def test_a_file_can_say_everything() -> None:
    definition = parse(
        """
        name = "mine"
        description = "Ours"
        where = "devbox"
        version = "1.2.3"
        install = "npm install -g ours@$SWEEP_AGENT_VERSION"
        run = "ours --stdin"
        time_limit = 900
        [env]
        required = ["A", ["X", "Y"]]
        optional = ["B"]
        secret = ["A", "C"]
        set = { QUIET = "1" }
        [model]
        required = true
        default = "ours-1"
        variable = "OUR_MODEL"
        [network]
        hosts = ["api.example.com", "*.example.org", "127.0.0.1:80", "[::1]:80", "$B"]
        [usage]
        from = "~/.ours/*.jsonl"
        format = "json"
        input_tokens = "$[?@.type=='result'].usage.input_tokens"
        turns = { path = "$..turn", combine = "count" }
        exit_reason = "$..reason"
        [trajectory]
        from = "output"
        format = "claude-code"
        [gather]
        files = ["~/report.md"]
        """
    )
    assert definition.env.names == ("A", "X", "Y", "B", "C")
    assert definition.env.required == (("A",), ("X", "Y"))
    assert definition.env.constants == {"QUIET": "1"}
    assert definition.time_limit == 900
    assert definition.usage is not None
    assert {name: reading.combine for name, reading in definition.usage.numbers.items()} == {
        "input_tokens": "sum",
        "turns": "count",
    }


def test_a_mistake_in_a_table_of_a_table_is_named_with_line_and_key() -> None:
    text = 'run = "x"\n[usage.turns]\npath = "$.a"\ncombin = "max"\n'
    assert refusal(text) == (
        "agents/mine.toml, line 4: key usage.turns.combin: there is no such key; did you mean combine?"
    )
    text = 'run = "x"\n[usage]\nturns = { path = "$.a", combine = "most" }\n'
    assert refusal(text).startswith("agents/mine.toml, line 3: key usage.turns.combine: ")


def test_a_path_that_is_no_jsonpath_is_refused_when_the_file_is_read() -> None:
    message = refusal('run = "x"\n[usage]\nformat = "json"\nturns = "$.a["\nexit_reason = "stop"\n').splitlines()
    assert message[0].startswith("agents/mine.toml, line 4: key usage.turns: not a JSONPath (RFC 9535): unexpected end")
    assert message[1].startswith("agents/mine.toml, line 5: key usage.exit_reason: not a JSONPath")


def test_lines_of_scripts_are_not_taken_for_keys() -> None:
    text = "install = '''\ntime_limit=3\n[env]\n'''\nrun = \"x\"\ntime_limit = 0\n"
    assert refusal(text).startswith("agents/mine.toml, line 6: key time_limit:")


def test_a_host_in_a_variable_that_is_not_the_agents_is_refused() -> None:
    message = refusal('run = "x"\n[network]\nhosts = ["$BASE_URL"]')
    assert message == "agents/mine.toml, line 3: key network.hosts: $BASE_URL is none of the variables that [env] names"


def test_a_constant_that_the_environment_gives_too_is_refused() -> None:
    message = refusal('run = "x"\n[env]\noptional = ["A"]\nset = { A = "1" }')
    assert message.startswith("agents/mine.toml, line 4: key env.set.A: is a constant")


def test_an_unknown_key_is_named_with_its_line_and_the_key_that_was_meant() -> None:
    assert refusal('run = "x"\ntime_limt = 3\n') == (
        "agents/mine.toml, line 2: key time_limt: there is no such key; did you mean time_limit?"
    )


def test_an_unknown_key_of_a_table_is_named_with_the_keys_of_that_table() -> None:
    message = refusal('run = "x"\n\n[env]\nrequird = ["A"]\nzzz = 1\n')
    assert message.splitlines() == [
        "agents/mine.toml, line 4: key env.requird: there is no such key; did you mean required?",
        "agents/mine.toml, line 5: key env.zzz: there is no such key; there are required, optional, secret, set",
    ]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('run = "x"\ntime_limit = "60"', "line 2: key time_limit:"),
        ('run = "x"\ntime_limit = 0', "line 2: key time_limit:"),
        ('run = "x"\ntime_limit = inf', "line 2: key time_limit:"),
        ("run = 3", "line 1: key run:"),
        ('run = " "', "line 1: key run:"),
        ('run = "x"\nreference_output = "yes"', "line 2: key reference_output:"),
        ('run = "x"\nwhere = "moon"', "line 2: key where:"),
        ('run = "x"\nenv = { secret = ["A B"] }', "line 2: key env.secret.0:"),
        ('run = "x"\n[env]\nsecret = "A"', "line 3: key env.secret: must be a list"),
        ('run = "x"\n[env]\nrequired = ["A B"]', "line 3: key env.required.0:"),
        ('run = "x"\n[env]\nrequired = [[]]', "line 3: key env.required.0:"),
        ('run = "x"\n[env]\nset = { A = 1 }', "line 3: key env.set.A:"),
        ('run = "x"\nversion = "1 2"', "line 2: key version:"),
        ('run = "x"\nmodel = "a"', "line 2: key model: must be a table"),
        ('run = "x"\n[network]\nhosts = ["https://a.example"]', "line 3: key network.hosts.0:"),
        ('run = "x"\n[trajectory]\nformat = "codex"', "line 2: key trajectory.from: is missing"),
        ('run = "x"\n[trajectory]\nfrom = "output"\nformat = "moon"', "line 4: key trajectory.format: 'moon' is no"),
        ('run = "x"\n[gather]\nfiles = [""]', "line 3: key gather.files.0:"),
    ],
)
def test_a_wrong_value_is_named_with_line_and_key(text: str, where: str) -> None:
    assert refusal(text).startswith(f"agents/mine.toml, {where}")


def test_a_missing_run_is_named_without_a_line() -> None:
    assert refusal('description = "x"').startswith("agents/mine.toml: key run: is missing")


def test_a_file_that_is_not_toml_is_named_with_the_place() -> None:
    message = refusal('run = "x"\nrun == 3')
    assert message.startswith("agents/mine.toml: not valid TOML:")
    assert "line 2" in message


def test_a_program_on_the_host_is_installed_by_its_user() -> None:
    assert parse('run = "x"\nwhere = "host"').where == "host"
    message = refusal('run = "x"\nwhere = "host"\ninstall = "y"')
    assert message.startswith("agents/mine.toml, line 3: key install: a program on this machine")


def test_only_oracle_may_see_the_reference_output() -> None:
    assert "key reference_output: only the agent named oracle" in refusal('run = "x"\nreference_output = true')
    assert parse_definition('run = "x"\nreference_output = true', name="oracle", file="f").reference_output


def test_a_name_that_is_not_the_files_is_refused() -> None:
    assert refusal('run = "x"\nname = "yours"') == (
        "agents/mine.toml, line 2: key name: must be 'mine', as the file is, or left out"
    )


def test_an_agent_has_a_command_of_its_own_or_takes_one() -> None:
    assert "not both" in refusal('run = "x"\nargument = "COMMAND"')
    definition = parse('argument = "COMMAND"')
    assert definition.with_argument("make").run == "make"
    assert definition.with_argument("make").digest != definition.with_argument("made").digest


def test_the_digest_follows_the_meaning_of_a_file_and_not_its_looks() -> None:
    plain = parse('run = "x"')
    assert parse('# a comment\nname="mine"\nwhere="devbox"\n\nrun   = "x"').digest == plain.digest
    assert parse('run = "x"\ndescription = "y"').digest == plain.digest
    assert parse('run = "y"').digest != plain.digest
    assert parse('run = "x"\ninstall = "y"').digest != plain.digest
    assert parse('run = "x"\n[env]\nrequired = ["A"]').digest != plain.digest


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.toml: the agent file cannot be read: No such file"):
        read_definition(tmp_path / "gone.toml")
    (tmp_path / "latin.toml").write_bytes(b'run = "caf\xe9"')
    with pytest.raises(UsageError, match=r"latin\.toml: an agent file is UTF-8 text"):
        read_definition(tmp_path / "latin.toml")
