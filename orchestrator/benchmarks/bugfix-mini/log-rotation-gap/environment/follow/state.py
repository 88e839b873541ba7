"""Remembers, in a small file, how far a log was read."""

import json
import os


def load(path):
    """Returns the state as a dict, {} if there is none."""
    if path is None or not os.path.exists(path) or os.path.getsize(path) == 0:
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def save(path, state):
    """Replaces the state in one step."""
    if path is None:
        return
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(state, file)
    os.replace(temporary, path)
