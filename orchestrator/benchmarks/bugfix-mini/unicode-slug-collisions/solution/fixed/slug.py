"""Names of files made from titles."""

import unicodedata


def slugify(title):
    """Returns a name for a page of this title; different titles may get the same."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", title).casefold())
    kept = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in folded)
    return "-".join(kept.split()) or "page"
