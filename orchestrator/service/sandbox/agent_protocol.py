"""The language between the service and the exec agent in a box: what goes in as frames, what comes out as lines.

Its secret: the two directions are not alike. Orders come from us and may be long (a script, an environment), so they
are length-prefixed fields. Answers come from a place where hostile programs run, so they are lines of one alphabet,
short, and matched whole: what does not match ends the box. JSON would need a parser on the untrusted side of memory
limits and 5 ms of start-up in every box; a line needs neither. No other file knows the bytes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.service.errors import SandboxError

#: No answer is longer; a box that sends more without a newline is not our agent.
MAX_LINE = 64
ANSWER = re.compile(rb"(?P<verb>ready|exit|listening)(?: (?P<number>\d{1,15}) (?P<status>\d{1,3}))?")


class WireError(SandboxError):
    """The box sent what our agent never sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The agent takes orders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """Command `number` ended with `status` (0 to 255)."""

    number: int
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Order `number` made a socket, which came with this answer; unless `errno` says why not."""

    number: int
    errno: int


Answer = Ready | Exited | Listening


def spawn_frame(number: int, folder: str, argv: Sequence[str], environment: Mapping[str, str]) -> bytes:
    """The order to start a program. Raises ValueError for a NUL inside a field."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    return _frame("spawn", str(number), folder, str(len(argv)), *argv, *variables)


def order_frame(verb: str, number: int, *rest: str) -> bytes:
    return _frame(verb, str(number), *rest)


def _frame(*fields: str) -> bytes:
    if any("\0" in text for text in fields):
        raise ValueError("arguments, paths and environment cannot hold a NUL character")
    body = "\0".join(fields).encode("utf-8", "surrogateescape")
    return len(body).to_bytes(4, "big") + body


@dataclass(slots=True)
class Answers:
    """Cuts what arrives into answers; holds at most one unfinished line."""

    _rest: bytes = field(default=b"", init=False)

    def feed(self, data: bytes) -> list[Answer]:
        """The answers that are complete now. Raises WireError."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise WireError(f"its agent sent {len(self._rest)} bytes without an end")
        return [_parse(line) for line in lines]


def _parse(line: bytes) -> Answer:
    found = ANSWER.fullmatch(line)
    if found is None or (found["verb"] == b"ready") != (found["number"] is None):
        raise WireError(f"its agent sent {line[:MAX_LINE]!r}")
    if found["number"] is None:
        return Ready()
    number, status = int(found["number"]), int(found["status"])
    if found["verb"] == b"listening":
        return Listening(number=number, errno=status)
    if status > 255:
        raise WireError(f"its agent sent the exit status {status}")
    return Exited(number=number, status=status)
