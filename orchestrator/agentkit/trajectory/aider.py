"""aider's history of what its model was asked and answered, and its log of events with what that took.

Source: version 0.86 of the program. The history has the whole conversation again at each request, every line with the
word for its speaker in front. Of a request the last message is new; the ones before are examples and what was said.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from orchestrator.agentkit.trajectory.atif import Event, Metrics, Step
from orchestrator.agentkit.trajectory.reading import integer, number, printed_objects

_REQUEST: Final = re.compile(r"^(TO LLM|LLM RESPONSE) (\d{4}-\d\d-\d\dT\S+)\n", re.MULTILINE)
_LINE: Final = re.compile(r"^(SYSTEM|USER|ASSISTANT) ?(.*)$")


def read(files: Sequence[Path]) -> Iterator[Event]:
    """What happened: from the text of the history, and the JSON lines beside it."""
    for file in files:
        if file.suffix == ".jsonl":
            yield from _numbers(file)
        else:
            yield from _steps(file.read_text(errors="replace"))


def _steps(history: str) -> Iterator[Step]:
    _, *parts = _REQUEST.split(history)
    has_system = False
    for direction, when, said in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        spoken = list(_spoken(said))
        if direction == "LLM RESPONSE":
            yield Step(source="agent", message="\n".join(text for _, text in spoken), timestamp=when)
            continue
        if not has_system:
            yield from (Step(source="system", message=text, timestamp=when) for by, text in spoken if by == "SYSTEM")
            has_system = True
        yield from [Step(source="user", message=text, timestamp=when) for by, text in spoken if by == "USER"][-1:]


def _spoken(said: str) -> Iterator[tuple[str, str]]:
    """Who said what, one after the other; the lines between are marks."""
    lines = [match.groups() if (match := _LINE.match(line)) else ("", line) for line in said.split("\n")]
    for by, group in groupby(lines, key=lambda line: line[0]):
        if by:
            yield by, "\n".join(text for _, text in group)


def _numbers(file: Path) -> Iterator[Metrics]:
    for line in printed_objects(file):
        took = line.get("properties")
        if line.get("event") == "message_send" and isinstance(took, dict):
            yield Metrics(
                prompt_tokens=integer(took.get("prompt_tokens")),
                completion_tokens=integer(took.get("completion_tokens")),
                cost_usd=number(took.get("cost")),
            )
