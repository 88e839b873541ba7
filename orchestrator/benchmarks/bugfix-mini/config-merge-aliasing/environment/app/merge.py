"""Puts layers of configuration on top of each other."""


def merge(base, *overlays):
    """Returns base with the overlays on top, the later ones above the earlier ones.

    Dicts are merged key by key, None removes a key, "+name" appends to the list "name", anything else replaces.
    """
    result = base
    for overlay in overlays:
        for key, value in overlay.items():
            _apply(result, key, value)
    return result


def _apply(result, key, value):
    if value is None:
        result.pop(key, None)
    elif key.startswith("+"):
        result.setdefault(key[1:], []).extend(value)
    elif isinstance(value, dict) and isinstance(result.get(key), dict):
        merge(result[key], value)
    else:
        result[key] = value
