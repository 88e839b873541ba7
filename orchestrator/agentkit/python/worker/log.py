"""What an agent says of its work: lines for people in agent.log, numbers and a reason for the results."""

from __future__ import annotations

import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .frames import Channel


class Log:
    """`log(...)` writes a line to the attempt's agent.log, as `print` does; the methods write facts behind a message.

    `log.info("read %s", name, lines=3)` is the line `info: read x lines=3`.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __call__(self, *values: object) -> None:
        print(*values, flush=True)  # noqa: T201

    def debug(self, message: object, *args: object, **facts: object) -> None:
        self._say("debug", message, args, facts)

    def info(self, message: object, *args: object, **facts: object) -> None:
        self._say("info", message, args, facts)

    def warning(self, message: object, *args: object, **facts: object) -> None:
        self._say("warning", message, args, facts)

    def error(self, message: object, *args: object, **facts: object) -> None:
        self._say("error", message, args, facts)

    def exception(self, message: object, *args: object, **facts: object) -> None:
        """As `error`, with the traceback of the exception that is being handled."""
        self._say("error", message, args, facts)
        self(traceback.format_exc().rstrip())

    def usage(
        self,
        *,
        input_tokens: float = 0,
        output_tokens: float = 0,
        cached_tokens: float = 0,
        cost_usd: float = 0,
        turns: float = 0,
    ) -> None:
        """Add to what this attempt has used. It counts from now on, whatever becomes of the agent."""
        given = {
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cached_tokens": cached_tokens,
            "cost_usd": cost_usd,
            "turns": turns,
        }
        self._channel.send({"op": "note", "usage": {name: float(number) for name, number in given.items() if number}})

    def exit_reason(self, reason: str) -> None:
        """Say in a word or two why the agent ends; the last one counts."""
        self._channel.send({"op": "note", "exit_reason": str(reason)})

    def _say(self, level: str, message: object, args: tuple[object, ...], facts: dict[str, object]) -> None:
        text = str(message)
        if args:
            try:
                text %= args
            except (TypeError, ValueError):
                text = " ".join([text, *map(str, args)])
        self(f"{level}: {text}", *(f"{name}={value}" for name, value in facts.items()))
