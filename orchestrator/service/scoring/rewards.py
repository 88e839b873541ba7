"""Reward files that tests wrote become numbers, or the reason why not. Pure.

As Harbor 0.26 reads them: reward.json counts before reward.txt, whatever the other says. JSON is an object of named
numbers or one number, text is what `float` takes. `true` and `false` count as 1 and 0, and of two values with one name
the last counts, because they do there. A text that is nearly a number, and a value that is no finite number, is an
error: a score that was guessed is worse than none.

This file also travels: where a box has a Python, the scripts for foreign endpoints run it there (`python3 - FOLDER`).
So it needs no more than the standard library of Python 3.7, and nothing of ours. It prints `rewards={...}`, one line of
JSON, and then `score=x`.
"""

from __future__ import annotations

import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON_FILE = "reward.json"
TEXT_FILE = "reward.txt"
#: The name of the score of record, and of a number that came without a name.
RECORD = "reward"
#: Bytes of a reward file; more of it than this was never meant.
MAX_REWARD_BYTES = 1 << 20
#: Bytes and names that a message shows.
SHOWN_BYTES = 80
SHOWN_NAMES = 12


class BadReward(ValueError):
    """A file without a score; the message says why, with the first bytes of the file."""


class WrongReward(BadReward):
    """A file that was read, and is no score: its author meant what it says."""


def read_rewards(json_file: bytes | None, text_file: bytes | None) -> Mapping[str, float]:
    """Return the rewards by name: finite numbers, at least one. None stands for a file that is not there.

    Raises BadReward.
    """
    if json_file is not None:
        _judge_size(json_file, JSON_FILE)
        try:
            found = json.loads(json_file.decode("utf-8"))
        except RecursionError:
            raise BadReward(f"/logs/verifier/{JSON_FILE} nests too deep: {_first(json_file)}") from None
        except ValueError as error:
            why = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"is not JSON ({error})"
            raise BadReward(f"/logs/verifier/{JSON_FILE} {why}: {_first(json_file)}") from None
        if not isinstance(found, dict):
            return {RECORD: _finite(found, JSON_FILE, "", json_file)}
        if not found:
            raise WrongReward(f"/logs/verifier/{JSON_FILE} names no reward: {_first(json_file)}")
        return {
            name: _finite(value, JSON_FILE, f": {ascii(name)[:SHOWN_BYTES]}", json_file)
            for name, value in found.items()
        }
    if text_file is not None:
        _judge_size(text_file, TEXT_FILE)
        try:
            value = float(text_file.decode("utf-8"))
        except ValueError:
            raise BadReward(f"/logs/verifier/{TEXT_FILE} is not a number: {_first(text_file)}") from None
        return {RECORD: _finite(value, TEXT_FILE, "", text_file)}
    raise BadReward(f"the tests wrote neither /logs/verifier/{TEXT_FILE} nor /logs/verifier/{JSON_FILE}")


def score_of(rewards: Mapping[str, float]) -> float:
    """Return the score of record, from 0 to 1: the reward named `reward`, else the only one.

    Raises BadReward where there is none, and for one that is no score of ours: Harbor takes any number.
    """
    if RECORD not in rewards and len(rewards) != 1:
        names = ", ".join(ascii(name)[:SHOWN_BYTES] for name in list(rewards)[:SHOWN_NAMES])
        raise WrongReward(f'none of {len(rewards)} rewards is named "{RECORD}", so there is no score: {names}')
    name = RECORD if RECORD in rewards else next(iter(rewards))
    if not 0 <= rewards[name] <= 1:
        raise WrongReward(f"the reward {ascii(name)[:SHOWN_BYTES]} is {rewards[name]!r}, and a score is from 0 to 1")
    return rewards[name] + 0.0  # adding 0 turns -0.0 into 0.0


def _judge_size(data: bytes, file: str) -> None:
    if not data:
        raise BadReward(f"/logs/verifier/{file} is empty")
    if len(data) > MAX_REWARD_BYTES:
        raise BadReward(f"/logs/verifier/{file} has more than {MAX_REWARD_BYTES:,} bytes: {_first(data)}")


def _finite(value: Any, file: str, where: str, data: bytes) -> float:
    if not isinstance(value, (int, float)):
        raise WrongReward(f"/logs/verifier/{file}{where} is no number: {_first(data)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise WrongReward(f"/logs/verifier/{file}{where} is no finite number: {_first(data)}")
    return number


def _first(data: bytes) -> str:
    """Return the first bytes of a file for a message: one line, nothing in it that a terminal obeys."""
    start = ascii(data[:SHOWN_BYTES])[1:]
    return start if len(data) <= SHOWN_BYTES else start + "..."


def _found(path: str) -> bytes | None:
    """Read a reward file of this machine; a pipe or another thing that is no file counts as missing."""
    if not os.path.isfile(path):  # noqa: PTH113 - one import less in the box
        return None
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read(MAX_REWARD_BYTES + 1)


def main(folder: str) -> int:
    """Print the rewards and the score of the files in `folder`; returns the exit status."""
    try:
        rewards = read_rewards(_found(os.path.join(folder, JSON_FILE)), _found(os.path.join(folder, TEXT_FILE)))  # noqa: PTH118
        print("rewards=" + json.dumps(rewards))  # noqa: T201 - it is what it is for
        print("score=" + repr(score_of(rewards)))  # noqa: T201
    except BadReward as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
