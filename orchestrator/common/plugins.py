"""Plug-ins: agents, exporters and notifiers that installed packages bring as entry points.

A plug-in is imported when it is used, and never before: a broken one harms nobody who does not name it. What is built
in wins over a plug-in of that name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from orchestrator.core.errors import SweepError, UsageError


class PlugInGroup(StrEnum):
    """The groups of entry points that are looked at."""

    AGENTS = "sweep.agents"
    """Classes and functions, as `--agent module:Class` takes them."""
    EXPORTERS = "sweep.exporters"
    """Called with the rows of results and the run folder; return or yield bytes."""
    NOTIFIERS = "sweep.notifiers"
    """Called with the notification, a dict, and the text after the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlugIn:
    """An entry point; `package` is the name and version of what brings it, for people."""

    name: str
    module: str
    attribute: str
    package: str
    entry_point: EntryPoint

    def __str__(self) -> str:
        return f"the plug-in {self.name} ({self.module}:{self.attribute}, of {self.package})"

    @property
    def description(self) -> str:
        return f"{self.module}:{self.attribute}, of {self.package}."

    def load(self) -> Any:
        """Import what it names. Raises UsageError naming the plug-in."""
        with self.blamed():
            return self.entry_point.load()

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Inside, a failure of the plug-in's own code becomes a UsageError that names it."""
        try:
            yield
        except SweepError:
            raise
        except (Exception, SystemExit) as error:
            words = f"{type(error).__name__}: {error}".rstrip(": ")
            raise UsageError(f"{self} is broken: {words}. Fix it, or leave it out.") from error


def plug_ins(group: PlugInGroup) -> dict[str, PlugIn]:
    """List the plug-ins of a group by name; of two with one name, the first on the module search path counts."""
    found: dict[str, PlugIn] = {}
    for each in entry_points(group=group):
        package = f"{each.dist.name} {each.dist.version}" if each.dist else "an unknown package"
        plug_in = PlugIn(name=each.name, module=each.module, attribute=each.attr, package=package, entry_point=each)
        found.setdefault(each.name, plug_in)
    return found
