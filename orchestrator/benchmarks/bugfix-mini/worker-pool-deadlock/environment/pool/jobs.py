"""What goes into the pool and what comes out of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    number: int
    function: Callable[..., Any]
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Result:
    number: int
    value: Any = None
    error: BaseException | None = None
