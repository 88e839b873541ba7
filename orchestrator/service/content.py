"""Folders and files that strangers wrote, read without trusting them.

Links are an author's way to point anywhere on this machine, so each is judged here, once, for all readers: one that
stays in its own folder is kept, one to a file elsewhere in the same benchmark becomes that file, any other is a
mistake.
Why not `Path.resolve` at each reader: the one that forgets it would hand out files of the host.

TOML is read in bounded time. The standard library's parser takes seconds for a file of a hundred thousand keys, and
hours for one key of a hundred thousand parts; and it returns integers, and depths, that our JSON cannot carry further.
"""

import errno
import hashlib
import os
import re
import stat
import tarfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, Literal

from orchestrator.service.diagnostics import printable

MAX_DEPTH: Final = 100
"""Folders in folders; each is a call that waits."""
IGNORED: Final = frozenset({"__pycache__", ".DS_Store"})
"""Left behind by tools: pip compiles the Python files it installs, and that must not change a digest."""
#: Bytes of one TOML file.
MAX_TOML: Final = 1 << 20
#: Values of one TOML file, and the separators between them: some 0.3 s.
MAX_TOML_VALUES: Final = 20_000
#: Parts of one TOML key, and tables in tables.
MAX_TOML_DEPTH: Final = 32
#: Digits of a number; a longer one does not fit into 64 bits either.
MAX_DIGITS: Final = 100
_INTEGERS: Final = range(-(1 << 63), 1 << 63)
_KINDS: Final = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
#: Strings and comments of TOML. Each alternative matches to the end of the file where its own end is missing.
_STRING: Final = re.compile(
    r"""(?xs) \"{3} (?: [^\\] | \\. )*? (?: \"{3,5} | \Z ) | '{3} .*? (?: '{3,5} | \Z )
    | \" (?: [^\"\\\n] | \\[^\n] )* \"? | ' [^'\n]* '? | \# [^\n]*"""
)
_LONG_NUMBER: Final = re.compile(rf"(?<![\w\-.])[+-]?[0-9_]{{{MAX_DIGITS + 1}}}")
_BRACKET: Final = re.compile(r"[\[\]{}]")
_NO_KEY: Final = re.compile(r"[^\w\-.\"' \t]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A file, folder or link. `path` is relative, with slashes; `place` is its absolute path on the disk."""

    path: str
    kind: Literal["file", "folder", "link"]
    place: str
    target: str = ""
    is_executable: bool = False
    size: int = 0
    stamp: tuple[int, ...] = ()

    @property
    def source(self) -> Path:
        """`place` as a Path, made only when it is used: names are listed far more often than read."""
        return Path(self.place)

    def archived(self, name: str) -> tarfile.TarInfo:
        """Return its entry in an archive, under a name there; the size of a file is for who reads it."""
        entry = tarfile.TarInfo(name)
        entry.mode = self.mode
        if self.kind == "folder":
            entry.type = tarfile.DIRTYPE
        elif self.kind == "link":
            entry.type, entry.linkname = tarfile.SYMTYPE, self.target
        return entry

    @property
    def mode(self) -> int:
        """The mode of every copy, independent of the umask under which the folder was checked out."""
        return 0o755 if self.kind == "folder" or self.is_executable else 0o644


@dataclass(frozen=True, slots=True)
class Listing:
    """The content of a folder, by path, and the parts of it that cannot be used: (path, why)."""

    nodes: tuple[Node, ...] = ()
    faults: tuple[tuple[str, str], ...] = ()

    def below(self, folder: str) -> "Listing":
        """The part below a sub-folder, with paths relative to it."""
        start = folder + "/"
        nodes = [
            Node(
                path=node.path[len(start) :],
                kind=node.kind,
                place=node.place,
                target=node.target,
                is_executable=node.is_executable,
                size=node.size,
                stamp=node.stamp,
            )
            for node in self.nodes
            if node.path.startswith(start)
        ]
        return Listing(tuple(nodes), tuple((p[len(start) :], why) for p, why in self.faults if p.startswith(start)))

    def find(self, path: str) -> Node | None:
        return next((node for node in self.nodes if node.path == path), None)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(node.size for node in self.nodes)

    @property
    def stamps(self) -> tuple[tuple[str | int, ...], ...]:
        """Changes when anything in the folder may have changed."""
        nodes: list[tuple[str | int, ...]] = [(node.path, node.target, *node.stamp) for node in self.nodes]
        return (*nodes, *self.faults)

    @property
    def changed_ns(self) -> int:
        """Time of the last change of a file, by its file system's clock."""
        return max((node.stamp[1] for node in self.nodes if node.kind == "file"), default=0)


def listing(folder: Path, boundary: Path) -> Listing:
    """List everything below `folder`; links may lead to files anywhere below `boundary`.

    A name that cannot be used is among the faults, with the reason. Raises OSError when the folder itself cannot be
    read.
    """
    faults: list[tuple[str, str]] = []
    home, fence = folder.resolve(), boundary.resolve()
    if not home.is_relative_to(fence):
        return Listing((), (("", f"leads out of {boundary.name}/: copy the folder there instead of linking it"),))
    nodes = tuple(_walk(str(home), "", home, fence, faults))
    return Listing(nodes, tuple((printable(path), why) for path, why in faults))


def _walk(folder: str, prefix: str, home: Path, fence: Path, faults: list[tuple[str, str]]) -> Iterator[Node]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name in IGNORED:
            continue
        path = prefix + entry.name
        try:
            if not is_utf8(entry.name):
                faults.append((path, "has a name that is not UTF-8: give it another"))
                continue
            status = entry.stat(follow_symlinks=False)
            if entry.is_symlink():
                node = _link(path, Path(entry.path), home, fence)
                if isinstance(node, Node):
                    yield node
                else:
                    faults.append((path, node))
            elif entry.is_dir(follow_symlinks=False):
                yield Node(path=path, kind="folder", place=entry.path, stamp=(status.st_mode,))
                if path.count("/") >= MAX_DEPTH:
                    faults.append((path, f"is a folder below {MAX_DEPTH} others: folders nest no deeper"))
                else:
                    yield from _walk(entry.path, path + "/", home, fence, faults)
            elif stat.S_ISREG(status.st_mode):
                yield _file(path, entry.path, status)
            else:
                faults.append((path, f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'neither a file nor a folder')}"))
        except OSError as error:
            faults.append((path, complaint(error)))


def is_utf8(name: str) -> bool:
    """Tell whether a name of the file system can be sent, and be found by others under the same name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _file(path: str, place: str, status: os.stat_result) -> Node:
    is_executable = bool(status.st_mode & stat.S_IXUSR)
    stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_mode, status.st_ino)
    return Node(path=path, kind="file", place=place, is_executable=is_executable, size=status.st_size, stamp=stamp)


def _link(path: str, source: Path, home: Path, fence: Path) -> Node | str:
    """The node that a link stands for, or the reason why it cannot be used."""
    target = os.readlink(source)  # noqa: PTH115 - the text as it is, trailing slash included
    if not is_utf8(target):
        return "is a link to a name that is not UTF-8: give it another"
    try:
        source.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return f"is a link to {printable(target)}, which goes round in a circle"

    # environment/, solution/ and tests/ are each copied without the others, so a link is kept inside one of them only
    top = home / path.split("/", 1)[0]
    end = Path(os.path.realpath(source))
    is_inside = Path(os.path.normpath(source.parent / target)).is_relative_to(top) and end.is_relative_to(top)
    if "/" in path and not target.startswith("/") and is_inside:
        return Node(path=path, kind="link", place=str(source), target=target)

    if not end.is_relative_to(fence):
        return f"is a link to {printable(target)}, which leaves the benchmark's folder: copy the file instead"
    for hidden in ("tests", "solution") if path.startswith("environment/") else ():
        if end.is_relative_to(home / hidden):
            return f"is a link into {hidden}/, which the agent must not see"
    if not end.is_file():
        return f"is a link to {printable(target)}, which is not a file: copy the folder instead of linking it"
    return _file(path, str(end), end.stat())


class Unfit(OSError):
    """A file that is refused; the message says what is wrong with it."""


def complaint(error: OSError) -> str:
    """The words for a file that could not be read, to follow its name."""
    return str(error) if isinstance(error, Unfit) else f"cannot be read: {error.strerror or error}"


def read_file(place: str | Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes; its size is checked first.

    Raises OSError; it is Unfit for a file that is too large, and for anything that is not a file, even if it was one
    when it was listed: opening a pipe would wait for a writer.
    """
    with open_file(place) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(limit + 1) if size <= limit else b""
        if max(size, len(data)) > limit:
            raise Unfit(f"has {max(size, len(data)):,} bytes; at most {limit:,} are read")
        return data


def decoded(data: bytes) -> str:
    """The text of a file that was read. Raises Unfit if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Unfit(f"is not UTF-8 text: {error.reason} at byte {error.start}") from None


def open_file(place: str | Path) -> BufferedReader:
    """Open what is a file now, whatever it was when it was listed. Raises OSError, Unfit for anything else."""
    file = os.fdopen(os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Unfit("is not a file")
    return file


@dataclass(slots=True)
class Contents:
    """Files as they were read: a digest is always that of the very bytes that were handed out.

    `digests` are by place on the disk. Files change while they are read; hashing them in a second reading would
    describe other bytes than were used.
    """

    digests: dict[str, str] = field(default_factory=dict)
    _read: dict[str, bytes] = field(default_factory=dict)

    def read(self, node: Node, limit: int) -> bytes:
        """Read a file; the bytes are the same every time. Raises OSError."""
        if node.place not in self._read:
            data = read_file(node.place, limit)
            self._read[node.place], self.digests[node.place] = data, hashlib.sha256(data).hexdigest()
        return self._read[node.place]

    def hash(self, node: Node) -> None:
        """Add the digest of a file of any size that was not read. Raises OSError."""
        if node.place not in self.digests:
            with open_file(node.place) as file:
                self.digests[node.place] = hashlib.file_digest(file, "sha256").hexdigest()

    def skip(self, node: Node) -> None:
        """Let size and times stand for the content of a file that is too large, or cannot be read."""
        self.digests.setdefault(node.place, f"unread {node.stamp}")


def digest(nodes: Sequence[Node], known: dict[str, str] | None = None) -> str:
    """SHA-256 of names, kinds, executable bits and contents; `known` spares files read before. Raises OSError."""
    whole, contents = hashlib.sha256(), Contents({} if known is None else known)
    for node in nodes:
        content = node.target
        if node.kind == "file":
            contents.hash(node)
            content = contents.digests[node.place]
        whole.update(f"{node.kind}\0{node.path}\0{node.is_executable:d}\0{content}\0".encode())
    return whole.hexdigest()


class TomlError(ValueError):
    """A mistake in a TOML file; `key` is the key it is at, or `line 7`, or empty."""

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


def parse_toml(data: bytes) -> dict[str, Any]:
    """Parse the content of a TOML file. Raises TomlError."""
    try:
        text = decoded(data)
    except Unfit as error:
        raise TomlError(str(error)) from None
    _bound(_STRING.sub(lambda found: '""' + "\n" * found[0].count("\n"), text))
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise TomlError(f"is not TOML: {error}") from None

    # values that are TOML, and could go no further
    left: list[tuple[str, Any, int]] = [(key, value, 1) for key, value in document.items()]
    while left:
        key, value, depth = left.pop()
        if depth > MAX_TOML_DEPTH:
            raise TomlError(f"nests deeper than {MAX_TOML_DEPTH} levels", key[:100])
        if isinstance(value, dict):
            left += [(f"{key}.{name}", each, depth + 1) for name, each in value.items()]
        elif isinstance(value, list):
            left += [(f"{key}[{number}]", each, depth + 1) for number, each in enumerate(value)]
        elif isinstance(value, int) and value not in _INTEGERS:
            raise TomlError("is a whole number of more than 64 bits", key)
        elif isinstance(value, str) and "\0" in value:
            raise TomlError("has a character NUL, which no program can be given", key)
        if "\0" in key:
            raise TomlError("has a character NUL in its name", key)
    return document


def _bound(structure: str) -> None:
    """Raise TomlError where the parser would take too long, or break off; `structure` is TOML without its strings."""
    if sum(map(structure.count, "=,[.")) > MAX_TOML_VALUES:
        raise TomlError(f"has more than {MAX_TOML_VALUES:,} keys and values")
    depth = 0
    for number, line in enumerate(structure.split("\n"), 1):
        if any(run.count(".") >= MAX_TOML_DEPTH for run in _NO_KEY.split(line)):
            raise TomlError(f"has a key of more than {MAX_TOML_DEPTH} parts", f"line {number}")
        if _LONG_NUMBER.search(line):
            raise TomlError(f"has a number of more than {MAX_DIGITS} digits", f"line {number}")
        for bracket in _BRACKET.findall(line):
            depth += 1 if bracket in "[{" else -1
            if depth > MAX_TOML_DEPTH:
                raise TomlError(f"nests deeper than {MAX_TOML_DEPTH} levels", f"line {number}")
