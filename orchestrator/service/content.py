"""A folder as content: what is in it, what it amounts to in one digest, and nothing from outside.

Links are the author's way to point anywhere on this machine, so each is judged here, once, for everybody: one that
stays in its own folder is kept, one to a file elsewhere in the same benchmark becomes that file, any other is a
mistake.
Why not `Path.resolve` at each reader: the one that forgets it would hand out files of the host.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Final, Literal

from orchestrator.service.diagnostics import printable

MAX_DEPTH: Final = 100
"""Folders in folders; each is a call that waits."""
IGNORED: Final = frozenset({"__pycache__", ".DS_Store"})
"""Left behind by tools: pip compiles the Python files it installs, and that must not change a digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A file, folder or link. `path` is relative, with slashes; `place` is where it is on the disk."""

    path: str
    kind: Literal["file", "folder", "link"]
    place: str
    target: str = ""
    is_executable: bool = False
    size: int = 0
    stamp: tuple[int, ...] = ()

    @property
    def source(self) -> Path:
        """`place`, made a path only when it is used: names are listed far more often than read."""
        return Path(self.place)

    @property
    def mode(self) -> int:
        """The mode it gets anywhere else, whatever the umask of whoever checked the folder out."""
        return 0o755 if self.kind == "folder" or self.is_executable else 0o644


@dataclass(frozen=True, slots=True)
class Listing:
    """What a folder contains, by path, and what in it cannot be used (path, why)."""

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
        """When a file was changed last, by its file system's clock."""
        return max((node.stamp[1] for node in self.nodes if node.kind == "file"), default=0)


def listing(folder: Path, boundary: Path) -> Listing:
    """Read the names below `folder`; links may lead to files anywhere below `boundary`.

    What cannot be used is among the faults, with why. Raises OSError when the folder itself cannot be read.
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
                    faults.append((path, f"is a folder below {MAX_DEPTH} others, and one too many"))
                else:
                    yield from _walk(entry.path, path + "/", home, fence, faults)
            elif stat.S_ISREG(status.st_mode):
                yield _file(path, entry.path, status)
            else:
                faults.append((path, f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'neither a file nor a folder')}"))
        except OSError as error:
            faults.append((path, complaint(error)))


_KINDS: Final = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def is_utf8(name: str) -> bool:
    """Whether a name of the file system can be sent, and be found by others under the same name."""
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
    """The node that a link stands for, or why it cannot be used."""
    target = os.readlink(source)  # noqa: PTH115 - the text as it is, trailing slash included
    if not is_utf8(target):
        return "is a link to a name that is not UTF-8: give it another"
    if _is_circle(source):
        return f"is a link to {printable(target)}, which goes round in a circle"
    end = Path(os.path.realpath(source))
    inside = Path(os.path.normpath(source.parent / target)).is_relative_to(_top(home, path))
    if "/" in path and not target.startswith("/") and inside and end.is_relative_to(_top(home, path)):
        return Node(path=path, kind="link", place=str(source), target=target)
    if not end.is_relative_to(fence):
        return f"is a link to {printable(target)}, which leaves the benchmark's folder: copy the file instead"
    hidden = _forbidden(home, path, end)
    if hidden:
        return f"is a link into {hidden}/, which the agent must not see"
    if not end.is_file():
        return f"is a link to {printable(target)}, which is not a file: copy the folder instead of linking it"
    return _file(path, str(end), end.stat())


def _is_circle(source: Path) -> bool:
    try:
        source.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _top(home: Path, path: str) -> Path:
    """The folder that a link may move in: environment/, solution/ and tests/ are each copied without the others."""
    return home / path.split("/", 1)[0]


def _forbidden(home: Path, path: str, end: Path) -> str:
    """The hidden folder of its scenario that a link of the environment leads into, if it does."""
    if path.startswith("environment/"):
        for hidden in ("tests", "solution"):
            if end.is_relative_to(home / hidden):
                return hidden
    return ""


class Unfit(OSError):
    """A file that is not read; the message says what it is."""


def complaint(error: OSError) -> str:
    """What to say of a file that could not be read, after its name."""
    return str(error) if isinstance(error, Unfit) else f"cannot be read: {error.strerror or error}"


def read_file(place: str | Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes, whose size is looked at first.

    Raises OSError; it is Unfit for what is too large, and for what is no file, be it only since it was listed: opening
    a pipe would wait for somebody to write.
    """
    with _opened(place) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(limit + 1) if size <= limit else b""
        if max(size, len(data)) > limit:
            raise Unfit(f"has {max(size, len(data)):,} bytes; at most {limit:,} are read")
        return data


def _opened(place: str | Path) -> BufferedReader:
    file = os.fdopen(os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Unfit("is not a file")
    return file


@dataclass(slots=True)
class Contents:
    """Files as they were read: what they amount to is the digest of the very bytes that were handed out.

    `digests` are by place on the disk. Files change while they are read; hashing them in a second reading would tell
    of others than were used.
    """

    digests: dict[str, str] = field(default_factory=dict)
    _read: dict[str, bytes] = field(default_factory=dict)

    def read(self, node: Node, limit: int) -> bytes:
        """A file's content, the same one every time. Raises OSError."""
        if node.place not in self._read:
            data = read_file(node.place, limit)
            self._read[node.place], self.digests[node.place] = data, hashlib.sha256(data).hexdigest()
        return self._read[node.place]

    def hash(self, node: Node) -> None:
        """Take in a file of any size that nobody has asked for. Raises OSError."""
        if node.place not in self.digests:
            with _opened(node.place) as file:
                self.digests[node.place] = hashlib.file_digest(file, "sha256").hexdigest()

    def skip(self, node: Node) -> None:
        """Take a file in by its size and times only: it is too large, or cannot be read."""
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
