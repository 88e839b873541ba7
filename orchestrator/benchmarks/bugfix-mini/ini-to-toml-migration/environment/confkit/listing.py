"""Values as plain text."""


def show(sections):
    """Returns one line for each value line, with its section and key."""
    return [
        f"[{section.name}] {entry.key} = {line}"
        for section in sections
        for entry in section.entries
        for line in entry.lines
    ]


def find(sections, name, key):
    """Returns the lines of a value, or None."""
    for section in sections:
        for entry in section.entries:
            if (section.name, entry.key) == (name, key):
                return entry.lines
    return None
