"""The merged settings, addressed by dotted paths."""

from .merge import own


class Settings:
    def __init__(self, values):
        self._values = own(values)

    def get(self, path, default=None):
        """Returns the value at a path such as "mail.footer.logo"."""
        value = self._values
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                return default
            value = value[key]
        return value

    def set(self, path, value):
        """Puts a value at a path, making the dicts on the way."""
        *parents, last = path.split(".")
        place = self._values
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = own(value)

    def as_dict(self):
        return self._values
