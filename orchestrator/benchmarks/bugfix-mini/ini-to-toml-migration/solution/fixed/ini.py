"""Reads our dialect of INI; README.md describes it."""

from dataclasses import dataclass, field


class IniError(Exception):
    """The file is not in our dialect; the message names the line."""


@dataclass
class Entry:
    key: str
    lines: list[str]  # the value, "" for a key whose own line has none
    comments: list[str] = field(default_factory=list)  # of the lines before it


@dataclass
class Section:
    name: str  # "" for what comes before the first header
    entries: list[Entry] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)  # of the lines before its first header


@dataclass
class Document:
    sections: list[Section]
    comments: list[str]  # after the last entry


def parse(text):
    """Returns the sections in the order of their first headers, the one without a name first."""
    return parse_document(text).sections


def parse_document(text):
    """Returns the sections and the comments."""
    sections = {"": Section("")}
    section = sections[""]
    entry = None
    comments = []
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped:
            continue
        if line[0] in ";#":
            comments.append(stripped[1:].strip())
        elif line[0].isspace():
            if entry is None:
                raise IniError(f"line {number}: nothing to go on with")
            entry.lines.append(stripped)
        elif line[0] == "[":
            name = _section_name(number, stripped)
            if name not in sections:
                sections[name] = Section(name, comments=comments)
                comments = []
            section = sections[name]
            entry = None
        else:
            entry = _entry(number, stripped, section)
            entry.comments, comments = comments, []
            section.entries.append(entry)
    return Document(list(sections.values()), comments)


def _section_name(number, line):
    name = line[1:-1].strip()
    if not line.endswith("]") or not name:
        raise IniError(f"line {number}: expected [section]")
    return name


def _entry(number, line, section):
    key, equals, value = line.partition("=")
    key = key.strip()
    if not equals or not key:
        raise IniError(f"line {number}: expected key = value")
    if any(entry.key == key for entry in section.entries):
        raise IniError(f"line {number}: {key} comes twice in [{section.name}]")
    return Entry(key, [value.strip()])
