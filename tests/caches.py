"""Cache folders: the tests' own, and those of single tests."""

import os
from pathlib import Path


def shared_cache() -> Path:
    """Return the folder in which tests keep what takes long to make, for each other and for the next run."""
    usual = os.environ.get("XDG_CACHE_HOME", "")
    place = (Path(usual) if usual.startswith("/") else Path.home() / ".cache") / "sweep-tests"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def own_cache(place: Path) -> Path:
    """Make the folder `place` a user's cache that is empty, but for what all tests share: our programs for images."""
    place.mkdir(mode=0o700, parents=True)
    shared = shared_cache() / "closures"
    shared.mkdir(mode=0o700, exist_ok=True)
    (place / "closures").symlink_to(shared)
    return place
