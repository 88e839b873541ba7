"""The folder for what is made once and kept: installs, images, copies of benchmarks, Harbor's environment."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder that all processes of this user share: $SWEEP_CACHE, else the usual place for caches."""
    if given := os.environ.get("SWEEP_CACHE"):
        return Path(given).absolute()
    usual = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(usual) if usual.startswith("/") else Path.home() / ".cache") / "sweep"
