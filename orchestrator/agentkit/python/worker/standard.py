"""Our own late imports: what an agent's folder has under the name of a standard module is for the agent, not for us."""

from __future__ import annotations

import contextlib
import sys
import threading
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

#: Where modules came from before the agent's folder was among it.
_PATH = tuple(sys.path)
_ours = threading.local()


class _Finder:
    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None and getattr(_ours, "are_importing", False):
            return PathFinder.find_spec(name, list(_PATH), target)
        return None


sys.meta_path.insert(0, _Finder)


@contextlib.contextmanager
def standard_library() -> Iterator[None]:
    """Inside, this thread imports as if the agent's folder were not there."""
    _ours.are_importing = True
    try:
        yield
    finally:
        _ours.are_importing = False
