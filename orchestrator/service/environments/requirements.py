"""The lines of a requirements file that may be installed for a scorer.

Environments are built outside the sandbox, so nothing in them may run code while it is being installed: only wheels are
taken. A source distribution, an editable install or a version control address runs its author's build script on the
machine of the service, and `-r`, `-c` and `${VARIABLE}` read its files and its environment; these are refused by line.

An address is judged as pip judges it: by the path alone, for a query or a fragment that ends with `.whl` makes no
wheel. Options are taken word by word, each by its full name, for one line may hold several, and pip lets
`--only-binary :none:` or `--no-binary` in the file undo what the command line says.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

_FLAGS: Final = frozenset({"--no-index", "--prefer-binary", "--require-hashes", "--pre"})
_WITH_VALUE: Final = frozenset(
    {"-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--trusted-host", "--only-binary"}
)


def check_requirements(contents: str) -> None:
    """Raises ValueError naming each line that may not be installed, and why."""
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
    """Say why a line is refused, if it is."""
    if "${" in line:
        return "variables of the service's environment are not filled in"
    if line.startswith("-"):
        return _bad_option(line)
    requirement, *options = re.split(r"\s+(?=--)", line)
    if wrong := [option for option in options if not option.startswith("--hash")]:
        return f"the option {wrong[0]} is not allowed in a scorer's requirements"
    requirement = requirement.strip()
    if " " not in requirement and _is_wheel(requirement):
        return None

    from packaging.requirements import InvalidRequirement, Requirement  # slow to import, and few scorers have any

    try:
        url = Requirement(requirement).url
    except InvalidRequirement:
        return f"{requirement!r} is neither a requirement by name nor a wheel; only wheels are installed"
    return f"{url} is not a wheel; only wheels are installed" if url and not _is_wheel(url) else None


def _bad_option(line: str) -> str | None:
    """Say why a line of options is refused, if it is."""
    try:
        words = iter(shlex.split(line))
    except ValueError as error:
        return f"{line!r} cannot be read: {error}"
    for word in words:
        option, has_value, value = word.partition("=")
        if option in _WITH_VALUE:
            value = value if has_value else next(words, "")
            if option == "--only-binary" and value != ":all:":
                return "only wheels are installed, so --only-binary can only be :all:"
        elif word not in _FLAGS:
            return f"the option {option} is not allowed in a scorer's requirements"
    return None


def _is_wheel(place: str) -> bool:
    """Tell whether an address or a path names the file of a wheel; a folder of such a name would be built."""
    try:
        parts = urlsplit(place)
    except ValueError:
        return False
    if parts.scheme not in {"", "http", "https", "file"}:
        return False
    path = unquote(parts.path) if parts.scheme else place
    return path.endswith(".whl") and not (parts.scheme in {"", "file"} and Path(path).is_dir())
