"""Names of files made from titles."""

import re


def slugify(title):
    """Returns a name for a page of this title."""
    plain = title.lower().encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
