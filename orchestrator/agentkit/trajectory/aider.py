"""aider's history of its requests to the model and the answers, and its log of events, which has the token counts.

Source: version 0.86 of the program. Each request in the history repeats the whole conversation, every line with its
speaker in front. Only the last message of a request is new; those before it are examples and repetitions.
"""

import re
from itertools import groupby
from operator import itemgetter
from typing import Final

from orchestrator.agentkit.trajectory import reading
from orchestrator.agentkit.trajectory.atif import Step

_REQUEST: Final = re.compile(r"^(TO LLM|LLM RESPONSE) (\d{4}-\d\d-\d\dT\S+)\n", re.MULTILINE)
_LINE: Final = re.compile(r"^(SYSTEM|USER|ASSISTANT) ?(.*)$")


def read(files: reading.Files) -> reading.Events:
    """Read the messages of the history, and the metrics in the JSON lines beside it."""
    for file in files:
        if file.suffix == ".jsonl":
            for line in reading.printed_objects(file):
                used = line.get("properties")
                if line.get("event") == "message_send" and isinstance(used, dict):
                    cost = used.get("cost")
                    yield reading.metrics(used, prompt="prompt_tokens", completion="completion_tokens", cost=cost)
            continue

        has_system = False
        _, *parts = _REQUEST.split(file.read_text(errors="replace"))
        for direction, when, said in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            lines = [match.groups() if (match := _LINE.match(line)) else ("", line) for line in said.split("\n")]
            groups = [(by, "\n".join(text for _, text in group)) for by, group in groupby(lines, key=itemgetter(0))]
            spoken = [(by, text) for by, text in groups if by]  # the lines between are marks

            if direction == "LLM RESPONSE":
                yield Step(source="agent", message="\n".join(text for _, text in spoken), timestamp=when)
                continue
            if not has_system:
                yield from (
                    Step(source="system", message=text, timestamp=when) for by, text in spoken if by == "SYSTEM"
                )
                has_system = True
            yield from [Step(source="user", message=text, timestamp=when) for by, text in spoken if by == "USER"][-1:]
