"""aider's history of its requests to the model and the answers, and its log of events, which has the token counts.

Source: version 0.86 of the program. Each request in the history repeats the whole conversation, every line with its
speaker in front. Only the last message of a request is new; those before it are examples and repetitions.
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
    """Read the messages of the history, and the metrics in the JSON lines beside it."""
    for file in files:
        yield from _metrics(file) if file.suffix == ".jsonl" else _steps(file.read_text(errors="replace"))


def _steps(history: str) -> Iterator[Event]:
    _, *parts = _REQUEST.split(history)
    has_system = False
    for direction, when, said in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        lines = [match.groups() if (match := _LINE.match(line)) else ("", line) for line in said.split("\n")]
        groups = [(by, "\n".join(text for _, text in group)) for by, group in groupby(lines, key=lambda line: line[0])]
        spoken = [(by, text) for by, text in groups if by]  # the lines between are marks

        if direction == "LLM RESPONSE":
            yield Step(source="agent", message="\n".join(text for _, text in spoken), timestamp=when)
            continue
        if not has_system:
            yield from (Step(source="system", message=text, timestamp=when) for by, text in spoken if by == "SYSTEM")
            has_system = True
        yield from [Step(source="user", message=text, timestamp=when) for by, text in spoken if by == "USER"][-1:]


def _metrics(file: Path) -> Iterator[Event]:
    for line in printed_objects(file):
        used = line.get("properties")
        if line.get("event") == "message_send" and isinstance(used, dict):
            yield Metrics(
                prompt_tokens=integer(used.get("prompt_tokens")),
                completion_tokens=integer(used.get("completion_tokens")),
                cost_usd=number(used.get("cost")),
            )
