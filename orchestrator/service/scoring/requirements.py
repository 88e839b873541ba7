"""Which lines of a requirements file are installed for a scorer, and which are refused.

Environments are built outside the sandbox, so nothing in them may run code while it is being installed: only wheels are
taken. A source distribution, an editable install or a version control address runs its author's build script on the
machine of the service, and `-r`, `-c` and `${VARIABLE}` read its files and its environment; these are refused by line.
"""

import re
from collections.abc import Iterator
from typing import Final

_OPTIONS: Final = frozenset(
    {
        "-i",
        "--index-url",
        "--extra-index-url",
        "--no-index",
        "-f",
        "--find-links",
        "--only-binary",
        "--prefer-binary",
        "--require-hashes",
        "--pre",
        "--trusted-host",
    }
)


def check_requirements(contents: str) -> None:
    """Raises ValueError naming each line that is not installed, and why."""
    problems = [f"line {number}: {why}" for number, line in _lines(contents) if (why := _problem(line))]
    if problems:
        raise ValueError("; ".join(problems))


def _lines(contents: str) -> Iterator[tuple[int, str]]:
    """Logical lines with the number of their first physical one; comments and empty lines left out."""
    pending, start = "", 0
    for number, line in enumerate(contents.splitlines(), 1):
        start = start if pending else number
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            pending += line[:-1]
            continue
        logical = re.sub(r"(^|\s+)#.*$", "", pending + line).strip()
        pending = ""
        if logical:
            yield start, logical
    if pending.strip():
        yield start, pending.strip()


def _problem(line: str) -> str | None:
    if "${" in line:
        return "variables of the service's environment are not filled in"
    if line.startswith("-"):
        option = re.split(r"[\s=]", line, maxsplit=1)[0]
        return None if option in _OPTIONS else f"the option {option} is not allowed in a scorer's requirements"
    requirement, *options = re.split(r"\s+(?=--)", line)
    if wrong := [option for option in options if not option.startswith("--hash")]:
        return f"the option {wrong[0]} is not allowed in a scorer's requirements"
    return _unfit(requirement.strip())


def _unfit(requirement: str) -> str | None:
    if requirement.endswith(".whl") and " " not in requirement:
        return None
    from packaging.requirements import InvalidRequirement, Requirement  # slow to import, and few scorers have any

    try:
        url = Requirement(requirement).url
    except InvalidRequirement:
        return f"{requirement!r} is neither a requirement by name nor a wheel; only wheels are installed"
    if url and not url.partition("#")[0].endswith(".whl"):
        return f"{url} is not a wheel; only wheels are installed"
    return None
