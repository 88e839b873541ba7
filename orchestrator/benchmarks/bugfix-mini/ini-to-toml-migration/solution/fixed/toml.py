"""Writes sections as TOML."""

import re

INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[+-]?(0|[1-9][0-9]*)\.[0-9]+")
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class ConversionError(Exception):
    """The sections can't be said in TOML."""


def to_toml(document):
    """Returns the text of a TOML file."""
    _check_conflicts(document.sections)
    blocks = [_block(section) for section in document.sections]
    blocks.append(_comments(document.comments))
    return "\n".join("".join(f"{line}\n" for line in block) for block in blocks if block)


def _path(section):
    return tuple(section.name.split(".")) if section.name else ()


def _check_conflicts(sections):
    tables = {_path(section)[:length] for section in sections for length in range(1, len(_path(section)) + 1)}
    for section in sections:
        for entry in section.entries:
            path = (*_path(section), entry.key)
            if path in tables:
                raise ConversionError(f"conflict: {'.'.join(path)} is both a key and a section")


def _block(section):
    lines = _comments(section.comments)
    if section.name:
        lines.append(f"[{'.'.join(_key(part) for part in _path(section))}]")
    for entry in section.entries:
        lines += _comments(entry.comments)
        lines.append(f"{_key(entry.key)} = {_value(entry.lines)}")
    return lines


def _comments(comments):
    return [f"# {comment}".rstrip() for comment in comments]


def _key(name):
    return name if BARE_KEY.fullmatch(name) else _string(name)


def _value(lines):
    first, *more = lines
    if not more:
        return _scalar(first)
    return f"[{', '.join(_scalar(line) for line in (lines if first else more))}]"


def _scalar(text):
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return _string(text[1:-1])
    if text.lower() in SWITCHES:
        return str(SWITCHES[text.lower()]).lower()
    if INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63:
        return text
    if FLOAT.fullmatch(text):
        return text
    return _string(text)


def _string(text):
    return '"' + "".join(_character(char) for char in text) + '"'


def _character(char):
    if char in '"\\':
        return "\\" + char
    if ord(char) < 0x20 or ord(char) == 0x7F:
        return f"\\u{ord(char):04x}"
    return char
