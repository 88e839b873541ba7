"""Finds the layers of a tenant and merges them."""

import functools
import json
import os
from pathlib import Path

from .defaults import DEFAULTS
from .merge import merge
from .settings import Settings

CONFIG = Path("config")


@functools.cache
def read_layer(path):
    """Returns the content of a file, {} if there is none; a file is read once."""
    if not path.exists():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def load(tenant):
    """Returns the Settings of a tenant."""
    environment = os.environ.get("APP_ENV", "dev")
    layers = [CONFIG / f"{environment}.json", CONFIG / "tenants" / f"{tenant}.json"]
    return Settings(merge(dict(DEFAULTS), *(read_layer(path) for path in layers)))
