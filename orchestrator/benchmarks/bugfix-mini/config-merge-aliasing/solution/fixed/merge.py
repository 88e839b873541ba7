"""Puts layers of configuration on top of each other."""


def own(value):
    """Returns the value with dicts and lists of its own, at any depth; what is neither stays the same object."""
    if isinstance(value, dict):
        return {key: own(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [own(inner) for inner in value]
    return value


def merge(base, *overlays):
    """Returns base with the overlays on top, the later ones above the earlier ones; shares no dict or list with them.

    Dicts are merged key by key, None removes a key, "+name" appends to the list "name", anything else replaces.
    """
    result = own(base)
    for overlay in overlays:
        _put_on_top(result, overlay)
    return result


def _put_on_top(result, overlay):
    for key, value in overlay.items():
        if value is None:
            result.pop(key, None)
        elif key.startswith("+"):
            result.setdefault(key[1:], []).extend(own(value))
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            _put_on_top(result[key], value)
        else:
            result[key] = own(value)
