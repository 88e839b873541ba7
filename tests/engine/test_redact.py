"""Secrets in everything that is written: found in every guise, masked byte for byte, also when they come in pieces."""

import base64
import json
import shlex
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.events import AttemptEnded, StageEntered, to_line
from orchestrator.core.ledger import Ledger
from orchestrator.core.records import Outcome
from orchestrator.core.stages import Stage
from orchestrator.engine.agent_log import AgentLog, is_cut
from orchestrator.engine.redact import MIN_BYTES, NO_SECRETS, MaskingSink, Redactor
from orchestrator.testing.clock import run_virtually
from orchestrator.testing.fakes import MemorySink

SECRET: Final = """it's "quoted" $HOME `id` \\ ü漢🙂 /+?&="""
KEYS: Final = "-----BEGIN KEY-----\nAAAAbbbbCCCCdddd1234\nEEEEffffGGGG+/==\n-----END KEY-----\n"
GUISES: Final[dict[str, Callable[[str], str]]] = {
    "plain": str,
    "JSON": json.dumps,
    "JSON with its letters": lambda value: json.dumps(value, ensure_ascii=False),
    "JSON in JSON": lambda value: json.dumps(json.dumps(value)),
    "URL": lambda value: urllib.parse.quote(value, safe=""),
    "form": urllib.parse.quote_plus,
    "shell": shlex.quote,
    "Python": repr,
    "ASCII": ascii,
    "capitals": str.upper,
    "small letters": str.lower,
    "hexadecimal": lambda value: value.encode().hex(),
    "hexadecimal in capitals": lambda value: value.encode().hex().upper(),
}


def redactor(*values: str) -> Redactor:
    return Redactor((f"SECRET_{number}", value) for number, value in enumerate(values))


@pytest.mark.parametrize("guise", GUISES)
@pytest.mark.parametrize("value", [SECRET, "sk-ant-1234567890abcdef" * 8, "a b c d e f"])
def test_a_value_is_found_in_every_guise_and_masked_byte_for_byte(value: str, guise: str) -> None:
    shown = GUISES[guise](value).encode()
    masked = redactor(value).mask(b"before " + shown + b" after")
    assert len(masked) == len(shown) + 13
    assert masked.startswith(b"before ")
    assert masked.endswith(b" after")
    assert set(masked.removeprefix(b"before ").removesuffix(b" after")) <= set(b"*'\"\\")


@pytest.mark.parametrize("before", [b"", b"x", b"xy", b"user:"])
def test_base64_hides_no_value_wherever_it_begins(before: bytes) -> None:
    """But for the letters that it shares with what is beside it."""
    masked = redactor(SECRET).mask(base64.b64encode(before + SECRET.encode() + b"@example"))
    assert masked.count(b"*") >= len(SECRET.encode()) * 4 // 3 - 4


def test_each_line_of_a_value_is_masked_by_itself() -> None:
    """A patch puts a plus before each, a log a time."""
    shown = "".join(f"+{line}\n" for line in KEYS.splitlines()).encode()
    masked = redactor(KEYS).mask(shown)
    assert set(masked) == set(b"+*\n")
    assert len(masked) == len(shown)


def test_values_too_short_to_mask_are_left_and_reported() -> None:
    known = Redactor([("SHORT", "12345"), ("EMPTY", ""), ("LONG", "123456")])
    assert known.mask(b"12345 123456") == b"12345 ******"
    assert known.unmasked == ["SHORT"]


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be", "utf-16"])
@pytest.mark.parametrize("case", [str, str.upper, str.lower])
def test_no_value_is_hidden_by_bytes_between_its_letters(coding: str, case: Callable[[str], str]) -> None:
    shown = b"before " + case(SECRET).encode(coding) + b" after"
    masked = redactor(SECRET).mask(shown)
    assert len(masked) == len(shown)
    assert masked.count(b"*") == len(SECRET.encode("utf-16-le"))


@pytest.mark.parametrize("word", ["ollama", "anthropic", "PASSWORD", "abc-1234"[:7], "Anything"])
def test_ordinary_words_are_left_alone_in_files_and_named(word: str) -> None:
    known = Redactor([("WORD", word), ("KEY", "hunter2-hunter2")])
    assert known.words == ["WORD"]
    data = f"{word} hunter2-hunter2".encode()
    assert known.for_files().mask(data) == f"{word} ".encode() + b"*" * 15
    assert known.mask(data) == b"*" * len(word) + b" " + b"*" * 15


def test_a_value_of_the_scenarios_own_is_left_alone_in_files() -> None:
    known = redactor("hunter2-hunter2", "hunter3-hunter3")
    own = known.for_files([b"the password is hunter2-hunter2"])
    assert own.mask(b"hunter2-hunter2 hunter3-hunter3") == b"hunter2-hunter2 " + b"*" * 15
    assert known.for_files([b"nothing"]) is known


def test_without_secrets_nothing_changes() -> None:
    assert NO_SECRETS.mask(SECRET.encode()) == SECRET.encode()
    assert NO_SECRETS.stream().feed(b"piece") == b"piece"


@given(
    values=st.lists(st.text(st.sampled_from("ab*\n'"), min_size=MIN_BYTES, max_size=12), min_size=1, max_size=3),
    words=st.lists(st.integers(-1, 2), max_size=8),
    rest=st.text(st.sampled_from("ab*\n' "), max_size=20),
    cuts=st.lists(st.integers(0, 120), max_size=12),
)
def test_however_it_is_cut_into_pieces_no_value_comes_through(
    values: list[str], words: list[int], rest: str, cuts: list[int]
) -> None:
    known = redactor(*values)
    data = "".join([rest, *(values[word % len(values)] if word >= 0 else rest for word in words)]).encode()
    stream, ends = known.stream(), sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    pieces = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    out = b"".join(map(stream.feed, pieces)) + stream.finish()
    assert len(out) == len(data)
    for value in values:
        assert value.encode() not in out or set(value) == {"*"}


def test_a_value_that_a_kill_cut_off_is_masked_too() -> None:
    stream = redactor("sk-ant-1234567890").stream()
    assert stream.feed(b"key: sk-ant-12345678") == b"key: "
    assert stream.finish() == b"*" * 15


def test_events_have_no_secrets_in_the_words_of_others() -> None:
    """Our own words in them stay as they are, even where a value looks like one."""
    sink = MemorySink(Ledger())
    known = redactor("scored", "hunter2hunter2")
    masking = MaskingSink(sink, known)
    failure = {"class": "AgentCrashed", "message": "it said hunter2hunter2", "stage": "solve"}

    async def append() -> None:
        await masking.append(StageEntered(trial="scn/arm/1", attempt=1, stage=Stage.START))
        masking.append_nowait(AttemptEnded(trial="scn/arm/1", attempt=1, failure=failure, counted=True))

    run_virtually(append)
    assert b"hunter2" not in b"".join(map(to_line, sink.events))
    assert known.value({"outcome": Outcome.SCORED, "n": [1.5, None]}) == {"outcome": Outcome.SCORED, "n": [1.5, None]}


@pytest.mark.parametrize("known", [NO_SECRETS, redactor("hunter2hunter2")])
def test_half_a_character_in_the_words_of_others_reaches_no_journal(known: Redactor) -> None:
    """JSON can express it and UTF-8 cannot: an agent or an endpoint may send it."""
    sink = MemorySink(Ledger())
    failure = {"class": "AgentCrashed", "message": "\ud83d 🙂 oops", "stage": "solve"}

    async def append() -> None:
        await MaskingSink(sink, known).append(
            StageEntered(trial="scn/arm/1", attempt=1, stage=Stage.START),
            AttemptEnded(trial="scn/arm/1", attempt=1, failure=failure, counted=True),
        )

    run_virtually(append)
    assert "? 🙂 oops".encode() in to_line(sink.events[-1])


def logged(path: Path, *pieces: bytes, known: Redactor = NO_SECRETS, **options: Any) -> AgentLog:
    async def write() -> AgentLog:
        async with AgentLog(path, known, **options) as log:
            for piece in pieces:
                await log.write(piece)
            await log.finish()
            return log

    return run_virtually(write)


@pytest.mark.parametrize("size", [1, 7, 100, 4000, 50_000])
def test_a_flood_of_output_keeps_its_beginning_and_end_and_counts_the_rest(tmp_path: Path, size: int) -> None:
    data = b"".join(b"%07d\n" % number for number in range(20_000))
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    log = logged(tmp_path / "agent.log", *pieces, limit=16_000)
    kept = (tmp_path / "agent.log").read_bytes()
    assert log.is_truncated
    assert log.length == len(kept) <= 16_000
    assert kept[:8000] == data[:8000]
    assert kept[-3000:] == data[-3000:]
    note = kept[8000 : kept.index(b"here]\n") + 6]
    missing = int("".join(filter(str.isdigit, note.decode())))
    assert len(kept) - len(note) + missing == len(data)


def test_a_flood_of_output_is_counted_as_a_whole_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    first = logged(path, b"x" * 40_000, limit=16_000)
    second = logged(path, b"y" * 40_000, limit=16_000, length=first.length)
    assert second.is_truncated
    kept = path.read_bytes()
    missing = int(kept.split(b"sweep: ")[1].split(b" ")[0].replace(b",", b""))
    assert missing + kept.count(b"x") + kept.count(b"y") == 80_000 + 1  # the y of `bytes`
    assert not is_cut(path), "that is asked of logs of the usual size"


def test_a_log_has_no_secrets_and_the_same_length(tmp_path: Path) -> None:
    log = logged(tmp_path / "agent.log", b"key: s", b"ecret1", b"23 sec", known=redactor("secret123"))
    assert (tmp_path / "agent.log").read_bytes() == b"key: ********* sec"
    assert log.length == 18
