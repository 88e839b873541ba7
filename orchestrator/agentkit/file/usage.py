"""The usage of an agent, read from its output or a file, as its definition says.

Never a failure: a number that cannot be read is left out, with a warning in the log. An agent may print anything, and
any amount of it, so a log is read line by line, and a line that is too long to be a report is skipped.
"""

import io
import json
import operator
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import anyio
import jsonpath
import orjson
import structlog

from orchestrator.agentkit.agent import Workspace, is_usage, known_reason, known_usage
from orchestrator.agentkit.file.definition import OUTPUT, Usage
from orchestrator.core.errors import WorldError

#: A longer line, document or file is not a report.
MAX_LINE_BYTES: Final = 4 * 2**20
MAX_DOCUMENT_BYTES: Final = 16 * 2**20
MAX_FILE_BYTES: Final = 16 * 2**20
#: Lines that may begin a document, counted from the end.
MAX_BEGINNINGS: Final = 100
#: For finding a file in the devbox.
SEARCH_TIMEOUT_S: Final = 60.0

_FOLDS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "sum": operator.add,
    "count": operator.add,
    "max": max,
    "last": lambda _, new: new,
}
_BEGINNING: Final = re.compile(r"^[\[{]", re.MULTILINE)
_LAST_NAMES: Final = re.compile(r"\[((?:'[\w-]+'(?:, )?)+)\]$", re.ASCII)
#: Prints the size and the path of the newest file that $1 matches.
_NEWEST: Final = r"""
shopt -s globstar nullglob dotglob
IFS=
for file in $1; do
    if [ -f "$file" ] && { [ -z "$newest" ] || [ "$file" -nt "$newest" ]; }; then newest=$file; fi
done
[ -z "$newest" ] || printf '%s %s' "$(stat -L -c %s -- "$newest")" "$newest"
"""


async def read_usage(usage: Usage, log: Path, workspace: Workspace) -> tuple[Mapping[str, float], str]:
    """Read the numbers and the exit reason that an agent reports, as far as they can be read.

    `log` is its printed output. Of several files in the devbox that match the newest is read.
    """
    numbers = {name: _Finder(reading.path, is_usage, reading.combine) for name, reading in usage.numbers.items()}
    words = []
    if usage.exit_reason is not None:
        words.append(_Finder(usage.exit_reason, lambda found: isinstance(found, str), "last"))
    finders = [*numbers.values(), *words]
    try:
        source = log if usage.source == OUTPUT else await _fetch(usage.source, workspace)
        await anyio.to_thread.run_sync(_search, usage.format, finders, source, abandon_on_cancel=True)
        troubles = [finder.trouble for finder in finders if finder.trouble]
    except (OSError, ValueError, WorldError) as error:
        troubles = [str(error)]
    for trouble in troubles:
        structlog.get_logger().warning("usage.unread", source=usage.source, error=trouble)
    found = {name: finder.value for name, finder in numbers.items()}
    return known_usage(found), known_reason("".join(finder.value or "" for finder in words))


class _Finder:
    """Finds the values at a path in documents, and combines them into one."""

    def __init__(self, path: str, is_wanted: Callable[[object], bool], combine: str) -> None:
        compiled = jsonpath.compile(path, strict=True)
        last = _LAST_NAMES.search(str(compiled))
        self._names = [name.strip("'").encode() for name in last[1].split(", ")] if last else [b""]
        self.value: Any = None
        self.trouble = ""
        self._find = compiled.findall
        self._is_wanted = is_wanted
        self._is_count = combine == "count"
        self._fold = _FOLDS[combine]

    def may_match(self, text: bytes) -> bool:
        """Look for one of the last names of the path, without which there is no value. Parsing takes far longer."""
        return any(name in text for name in self._names)

    def search(self, document: Any) -> None:
        try:
            for found in self._find(document):
                if self._is_count:
                    self._add(1)
                elif self._is_wanted(found):
                    self._add(found)
        except (jsonpath.JSONPathError, RecursionError) as error:
            self.trouble = str(error)

    def _add(self, new: Any) -> None:
        self.value = new if self.value is None else self._fold(self.value, new)


def _search(form: str, finders: Iterable[_Finder], source: Path | bytes) -> None:
    """Let the finders search the documents of `source`. Raises OSError, and ValueError if there is no document."""
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        if form == "json":
            document = _document(file)
            for finder in finders:
                finder.search(document)
            return
        while line := file.readline(MAX_LINE_BYTES):
            is_whole = len(line) < MAX_LINE_BYTES or line.endswith(b"\n")
            while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)
            if not is_whole or line.lstrip()[:1] not in {b"{", b"["}:
                continue
            if matching := [finder for finder in finders if finder.may_match(line)]:
                with suppress(orjson.JSONDecodeError):  # agents print other things too
                    document = [orjson.loads(line)]
                    for finder in matching:
                        finder.search(document)


def _document(file: BinaryIO) -> Any:
    """The last JSON document; other text may surround it. Raises ValueError if there is none."""
    file.seek(max(0, file.seek(0, io.SEEK_END) - MAX_DOCUMENT_BYTES))
    text, decoder = file.read().decode(errors="replace"), json.JSONDecoder()
    beginnings = [match.start() for match in _BEGINNING.finditer(text)]
    for start in beginnings[: -MAX_BEGINNINGS - 1 : -1]:
        try:
            return decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            continue
    raise ValueError("no JSON document in it")


async def _fetch(pattern: str, workspace: Workspace) -> bytes:
    """Read the newest file in the devbox that matches. Raises OSError if there is none, ValueError if it is huge."""
    path = pattern if pattern.startswith("/") else f"{workspace.home}/{pattern.removeprefix('~/')}"
    result = await workspace.exec(shlex.join(["bash", "-c", _NEWEST, "newest", path]), timeout=SEARCH_TIMEOUT_S)
    size, _, newest = result.stdout.partition(" ")
    if not size.isdigit():
        raise FileNotFoundError(f"there is no such file in the devbox {result.stderr.strip()}".rstrip())
    if int(size) > MAX_FILE_BYTES:
        raise ValueError(f"{newest} has {size} bytes, more than {MAX_FILE_BYTES}")
    return await workspace.read(newest.rstrip("\n"), at_most=MAX_FILE_BYTES)
