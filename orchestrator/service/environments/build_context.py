"""The files that come with a Dockerfile, and what the sources of a COPY mean among them.

Links are data here: a layer gets them as they are, wherever they point. Only one that a source names is followed, and
never out of the folder. Patterns are matched in time that grows with their length, for strangers write them.
"""

import os
import posixpath
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from orchestrator.service.content import MAX_DEPTH, Contents, Listing, Node, complaint, is_utf8
from orchestrator.service.diagnostics import hint, printable
from orchestrator.service.environments.build_steps import CopySource

MAX_LINKS: Final = 40
#: Patterns of a .dockerignore, and ** within one name of a pattern.
MAX_PATTERNS: Final = 1000
MAX_DEEP: Final = 2
_CLASS: Final = re.compile(r"\[(\^?(?:\\.|[^\]\\])+)\]", re.DOTALL)
#: What a class of Python's may mean and one of Docker's does not; a character after a backslash is itself.
_SET_WORDS: Final = re.compile(r"(\\.)|[\[&~|]|(?<=-)-")
_STARS: Final = re.compile(r"(\\.)|\*+", re.DOTALL)
_WILDCARD: Final = re.compile(r"(?:[^\\]|\\.)*?[*?\[]", re.DOTALL)


class NotInContextError(ValueError):
    """A source of a COPY is not among the files; the message says why, and what to do."""


class Patterns:
    """Patterns as in a .dockerignore, of which the last that matches decides.

    Raises ValueError naming a bad pattern.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.rules: list[tuple[re.Pattern[str], bool]] = []
        for line in map(str.strip, (line for line in lines if not line.startswith("#"))):
            name = line.removeprefix("!").strip()
            if line == "!":
                raise ValueError("the pattern ! names nothing: write what it takes back in, as in !keep.txt")
            if name:
                if len(self.rules) == MAX_PATTERNS:
                    raise ValueError(f"has more than {MAX_PATTERNS:,} patterns")
                self.rules.append((glob(normal(name)), not line.startswith("!")))

    def match(self, path: str) -> bool:
        """Tell whether a path is left out. What matched a folder matches all that is below it."""
        names = path.split("/")
        above, verdict = [False] * len(self.rules), False
        for count in range(1, len(names) + 1):
            here, verdict = "/".join(names[:count]), False
            for number, (pattern, leaves_out) in enumerate(self.rules):
                if not above[number] and leaves_out != verdict:
                    above[number] = pattern.fullmatch(here) is not None
                verdict = leaves_out if above[number] else verdict
        return verdict


class BuildContext:
    """The files of a folder, without what its .dockerignore leaves out.

    Raises ValueError naming a bad pattern of `ignore`, the text of that file. `without` are paths that are not there
    for a Dockerfile, for other reasons. Faults of the listing count for what is copied only.
    """

    def __init__(self, files: Listing, contents: Contents, *, ignore: str = "", without: Iterable[str] = ()) -> None:
        patterns, apart = Patterns(ignore.removeprefix("\ufeff").split("\n")), frozenset(without)
        nodes = {node.path: node for node in files.nodes if node.path not in apart}
        kept = {path for path in nodes if not patterns.match(path)}
        kept |= {folder for path in kept for folder in _above(path)}
        self._nodes = {path: node for path, node in nodes.items() if path in kept}
        self._ignored = nodes.keys() - kept
        self._faults = [(path, why) for path, why in files.faults if not patterns.match(path)]
        self.contents = contents

    @classmethod
    def read(cls, folder: Path, *, ignore: str = "") -> Self:
        """List a folder. Raises OSError if it cannot be read, and ValueError naming a bad pattern of `ignore`."""
        faults: list[tuple[str, str]] = []
        nodes = tuple(_walk(str(folder), "", faults))
        return cls(Listing(nodes, tuple(faults)), Contents(), ignore=ignore)

    def __len__(self) -> int:
        return len(self._nodes)

    def select(self, source: str, *, exclude: Sequence[str] = (), keeps_parents: bool = False) -> CopySource:
        """Return what a source means. A pattern may match nothing, a name may not.

        With `keeps_parents`, paths keep the folders that the source names, or those after `/./` in it. Patterns of
        `exclude` leave out paths below a source. Raises NotInContextError, and ValueError naming a bad pattern.
        """
        name, pivot, apart = normal(source), "", Patterns(exclude)
        if keeps_parents and "/./" in source:
            pivot = normal(source.partition("/./")[0])
        folder, pattern = split_source(name, keeps_parents=keeps_parents)
        if pattern is None:
            matches = [(name, self._resolved(name, source))]
        else:
            matches = list(self._matches(folder, pattern, source))

        files: list[tuple[str, Node]] = []
        for path, node in matches:
            for faulty, why in self._faults:
                if not node.path or faulty == node.path or faulty.startswith(f"{node.path}/"):
                    raise NotInContextError(f"{printable(faulty)} {why}")
            place = posixpath.basename(path) if node.kind != "folder" else ""
            if keeps_parents:
                place = path.removeprefix(pivot).lstrip("/")
            files += [(place, node)] if place else []
            if node.kind == "folder":
                start = f"{node.path}/" if node.path else ""
                below = [(inner, each) for inner, each in self._nodes.items() if inner.startswith(start)]
                files += [(posixpath.join(place, inner[len(start) :]), each) for inner, each in below]
        return CopySource(
            path=name,
            is_folder=keeps_parents or [node.kind for _, node in matches] != ["file"],
            files=tuple((path, node) for path, node in files if not apart.match(path)),
        )

    def _matches(self, folder: str, pattern: re.Pattern[str], source: str) -> Iterator[tuple[str, Node]]:
        """Yield what matches below a folder, which may be a link, with its path by that. Raises NotInContextError."""
        try:
            top = self._resolved(folder, source).path
        except NotInContextError:
            return
        start = f"{top}/" if top else ""
        for path in self._nodes:
            if path.startswith(start) and pattern.fullmatch(path, len(start)):
                yield posixpath.join(folder, path[len(start) :]), self._resolved(path, source)

    def _resolved(self, path: str, source: str) -> Node:
        """Return the file or folder of this path, links followed inside the context. Raises NotInContextError."""
        left, links = deque(path.split("/")), 0
        done: list[str] = []
        while left:
            name = left.popleft()
            if name in {"", "."}:
                continue
            if name == "..":
                done = done[:-1]
                continue
            here = "/".join((*done, name))
            node = self._nodes.get(here)
            if node is None:
                raise NotInContextError(self._absence(here, source, is_link=links > 0))
            if node.kind != "link":
                done.append(name)
                continue
            links += 1
            if links > MAX_LINKS:
                raise NotInContextError(f"{source} is a link that leads through more than {MAX_LINKS} others")
            done = [] if node.target.startswith("/") else done
            left.extendleft(reversed(node.target.split("/")))
        return self._nodes["/".join(done)] if done else Node(path="", kind="folder", place="")

    def _absence(self, path: str, source: str, *, is_link: bool) -> str:
        """Return why a source is not there, and the fix."""
        for faulty, why in self._faults:
            if faulty == path:
                return f"{printable(path)} {why}"
        if is_link:
            return f"{source} is a link to {path}, which is not in the context: copy the file there"
        if any(each in self._ignored for each in (path, *_above(path))):
            return f"{source} is left out by .dockerignore: take it out of there, or leave out the line"
        if source.removeprefix("/").startswith("../"):
            return f"{source} leads out of the context, the folder whose files may be copied: move the file into it"
        return f"{source} is not in the context; {hint(path, list(self._nodes), 'commit it, or leave out the line')}"


def normal(path: str) -> str:
    """Return a path of the context without `.`, `..` and slashes at its ends; "" is the context itself."""
    return posixpath.normpath(f"/{path}").lstrip("/")


def is_pattern(name: str) -> bool:
    """Tell whether a source has wildcards."""
    return _WILDCARD.match(name) is not None


def split_source(name: str, *, keeps_parents: bool) -> tuple[str, re.Pattern[str] | None]:
    """Return the folder below which the wildcards of a source begin, and the pattern of what is there.

    One without wildcards is returned with None. In others ** is more than * with --parents only. Raises ValueError.
    """
    plain, names = name.split("/"), list[str]()
    while is_pattern("/".join(plain)):
        names.insert(0, plain.pop())
    if not names:
        return name, None
    below = "/".join(names)
    pattern = glob(below if keeps_parents else _STARS.sub(lambda found: found[1] or "*", below))
    return "/".join(plain), pattern


def _above(path: str) -> Iterator[str]:
    """Yield the folders that a path is in."""
    while path := posixpath.dirname(path):
        yield path


def _walk(folder: str, prefix: str, faults: list[tuple[str, str]]) -> Iterator[Node]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        path = prefix + entry.name
        if not is_utf8(entry.name):
            faults.append((path, "has a name that is not UTF-8: give it another"))
            continue
        try:
            status = entry.stat(follow_symlinks=False)
            if entry.is_symlink():
                target = os.readlink(entry.path)  # noqa: PTH115 - the text as it is, trailing slash included
                if is_utf8(target):
                    yield Node(path=path, kind="link", place=entry.path, target=target)
                else:
                    faults.append((path, "is a link to a name that is not UTF-8: give it another"))
            elif entry.is_dir(follow_symlinks=False):
                yield Node(path=path, kind="folder", place=entry.path)
                if path.count("/") >= MAX_DEPTH:
                    faults.append((path, f"is a folder below {MAX_DEPTH} others: folders nest no deeper"))
                else:
                    yield from _walk(entry.path, f"{path}/", faults)
            elif stat.S_ISREG(status.st_mode):
                is_executable = bool(status.st_mode & stat.S_IXUSR)
                size = status.st_size
                yield Node(path=path, kind="file", place=entry.path, is_executable=is_executable, size=size)
            else:
                faults.append((path, "is no file, folder or link: remove it"))
        except OSError as error:
            faults.append((path, complaint(error)))


def glob(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of Docker's. Raises ValueError.

    * and ? stay within a name, ** does not, [a-z] and [^a-z] are classes.

    What stands between two wildcards is looked for once, where it comes first, which decides nothing for what follows;
    trying all places would take an hour for a pattern of ten stars.
    """
    runs: list[list[str]] = [[]]
    for name in pattern.split("/"):
        if name != "**":
            runs[-1].append(_name_pattern(name))
        elif runs[-1] or len(runs) == 1:
            runs.append([])
    first, *middle = ("".join(f"{name}/" for name in run) for run in runs[:-1]) if len(runs) > 1 else ("",)
    last = "/".join(runs[-1])
    if len(runs) > 1:
        last = f"(?:[^/]*/)*{last}" if last else ".*"
    try:
        return re.compile(first + "".join(f"(?>(?:[^/]*/)*?{run})" for run in middle) + last, re.DOTALL)
    except re.error as error:
        raise ValueError(f"the pattern {pattern} is not valid: {error}") from None


def _name_pattern(name: str) -> str:
    """Translate the part of a pattern between two slashes. Raises ValueError."""
    if name.count("**") > MAX_DEEP:
        raise ValueError(f"the pattern {name} has ** more than {MAX_DEEP} times within a name")
    parts, at = [""], 0
    while at < len(name):
        if name.startswith("**", at):
            parts[-1], at = parts[-1] + ".*", at + 2
        elif name[at] == "*":
            parts, at = [*parts, ""], at + 1
        elif found := _CLASS.match(name, at):
            among = _SET_WORDS.sub(lambda each: each[0] if each[1] else f"\\{each[0]}", found[1])
            parts[-1], at = parts[-1] + f"(?!/)[{among}]", found.end()
        elif name[at] == "\\" and at + 1 < len(name):
            parts[-1], at = parts[-1] + re.escape(name[at + 1]), at + 2
        else:
            parts[-1], at = parts[-1] + ("[^/]" if name[at] == "?" else re.escape(name[at])), at + 1
    if len(parts) == 1:
        return parts[0]
    first, *middle, last = parts
    return first + "".join(f"(?>[^/]*?{part})" for part in middle if part) + "[^/]*" + last
