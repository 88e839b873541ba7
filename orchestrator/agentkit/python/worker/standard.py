"""Our own late imports: a file in the agent's folder that is named like a standard module is the agent's, not ours."""

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

#: The import path as it was before the agent's folder was added.
_PATH = tuple(sys.path)
_ours = threading.local()


class _StandardFinder:
    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None and getattr(_ours, "are_importing", False):
            return PathFinder.find_spec(name, list(_PATH), target)
        return None


sys.meta_path.insert(0, _StandardFinder)


@contextlib.contextmanager
def standard_library() -> Iterator[None]:
    """Import, in this thread, as if the agent's folder were not on the import path."""
    _ours.are_importing = True
    try:
        yield
    finally:
        _ours.are_importing = False
