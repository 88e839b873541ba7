"""Changes that an agent made in its devbox, found from outside: its files as they were, and as they are.

Of a box of an image only the layer that it writes is walked. What is not in there is as it was; what came there is
compared with the layers below, since a change of nothing but times or owners copies a file up too.

Its secret: the kernel's own time. Whatever touches a file sets the time of its change of status to now, and nobody in a
box can set that one back; so what has the same number (inode), size, mode and times as before is the same, and is not
read again. What may have changed is only listed here, for a box of ours that reads it; content that no prepared tree
has is kept aside before the agent begins. Blocking; call from a worker thread.
"""

import marshal
import os
import posixpath
import re
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final

from orchestrator.core.printable import printable
from orchestrator.service.devboxes.layers import Layers, is_opaque, is_whiteout
from orchestrator.service.sandbox.provider import Written
from orchestrator.service.sandbox.safe_fs import CHUNK_BYTES, FILE, MAX_DEPTH, copy_file, walk

#: Of one patch: files in it, their bytes, and bytes of one of them.
MOST_FILES: Final = 100_000
MOST_BYTES: Final = 1 << 30
LARGEST_FILE_BYTES: Final = 32 << 20
#: Lines of `changes.txt`, and of what stays out of a patch; characters of one line, and bytes of a path that is listed.
MOST_LINES: Final = 5000
LONGEST_LINE: Final = 400
LONGEST_PATH: Final = 4096
#: Entries of one folder of an image that are listed as removed.
MOST_REMOVED: Final = 100_000
#: Nanoseconds by which the clock of a file system may be behind.
_RACY: Final = 50_000_000
_GIT: Final = ".git"
#: What git keeps in its own folder by itself; of these, what runs commands.
_GITS_OWN: Final = re.compile(
    r"(objects|refs|logs|info|hooks|branches|worktrees|modules|rebase-\w+|lfs)(/.*)?|index(\.lock)?|packed-refs|config\S*"
    r"|description|shallow|[A-Z_]+|gc\.\w+|gitk\.cache"
)
_GIT_RUNS: Final = re.compile(r"(modules/.*/|worktrees/.*/)?(config\S*|hooks/[^/.]+|info/attributes)")
#: Folders of ~/.config that shells, git, Python and other tools of scorers read; an agent's own is none of them.
_CONFIGS: Final = (
    r"git|fish|nushell|powershell|environment\.d|systemd|curlrc|wgetrc|ripgrep\S*|readline"
    r"|pip|uv|pypoetry|pdm|hatch|virtualenv|pythonrc\S*|python\S*|flake8|pycodestyle|pylint\S*|mypy\S*|black|ruff|yapf|tox"
    r"|pytest\S*|coverage\S*|matplotlib|i?jupyter|ipython|npm\S*|yarn|pnpm|bun\S*|deno|node\S*|go|cargo|rustfmt|R|Renviron"
    r"|gem|bundle|irb|rspec|composer|psysh|nuget|NuGet|dotnet|cabal|ghc|stack|julia|maven|gradle|psql\S*|sqlite\S*|my\.cnf"
)
#: Start-up files and configuration below HOME that these tools read.
_START_UP: Final = re.compile(
    r"(?:home/[^/]+|root)/(\.(bash\w*|profile|zsh\w*|zlogin|inputrc|gitconfig|pythonrc\S*|pydistutils\.cfg|npmrc|yarnrc\S*|curlrc"
    r"|wgetrc|netrc|condarc|Rprofile|Renviron|perlrc|pdbrc|vimrc|gemrc|bunfig\.toml|cargo/config\S*)"
    rf"|\.(config/({_CONFIGS})|pip|local/bin|local/lib|local/share/(gem|npm)|pyenv|nvm|rbenv|rustup|asdf|deno|bun|julia"
    r"|ipython|cargo/bin|m2|gradle|node_modules)(/.*)?|(mini|ana|micro)\w*/(bin|lib)/.*|go/bin/.*)"
    r"|etc/(ld\.so\S*|nsswitch\.conf|environment|profile\S*|bash\S*|gitconfig|pip\.conf|python\S*/.*|npmrc|inputrc|hosts|ssl/.*"
    r"|alternatives/.*)"
)
_PACKAGES: Final = re.compile(r"(^|/)(site-packages|dist-packages)(/|$)")
_HOOK: Final = re.compile(r"(^|/)(sitecustomize|usercustomize)\.py$|\.pth$|(^|/)glibc-hwcaps/")
_ENTRY_POINTS: Final = re.compile(r"(site|dist)-packages/[^/]+\.(dist|egg)-info/entry_points\.txt$")
#: The file that makes a folder a virtual environment, whose programs tests call by their paths.
_VIRTUAL: Final = "pyvenv.cfg"
#: Programs of packages in the working directory, which tests call too.
_PROGRAMS: Final = re.compile(rf"(^|/)(node_modules/\.bin/[^/]+|{re.escape(_VIRTUAL)})$")
#: Files that test runners read in the folders above the working directory.
_SETTINGS: Final = frozenset({"conftest.py", "pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml", "package.json"})
#: Places that only exist, or mean something else, when scorers run: what an agent's link leads to there is not its own.
_HIDDEN: Final = re.compile(r"/(tests|run|proc|logs/verifier|evidence)(/|$)")
_SYSTEM: Final = re.compile(r"(usr|bin|sbin|lib\w*|opt)(/|$)")
#: What is no work even where the working directory is the root.
_NO_WORK: Final = re.compile(
    r"(usr|bin|sbin|lib\w*|opt|etc|var|run|boot|dev|proc|sys|home|root|tmp|logs|tests|solution)(/|$)"
)
#: The PATH of a box of an image that names none.
_IMAGE_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Facts = tuple[int, int, int, int, int]
"""Mode, size, time of change of content and of status in nanoseconds, number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Changes that an agent made and that scorers may meet.

    `system` are the paths of programs, modules and start-up files that a scorer may load; `leading` are links, relative
    to the box's root, that lead to where only scorers have files.
    """

    system: tuple[str, ...] = ()
    leading: tuple[str, ...] = ()


@dataclass(slots=True)
class _Lines:
    """The first of any number of lines; an agent may have made a million files."""

    kept: list[str] = field(default_factory=list)
    more: int = 0

    def append(self, line: str) -> None:
        if len(self.kept) < MOST_LINES:
            self.kept.append(line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 2]} …")
        else:
            self.more += 1

    @property
    def text(self) -> str:
        """All lines, each with its line end, and the number of those that were not kept."""
        more = f"and {self.more:,} more\n" if self.more else ""
        return "".join(f"{line}\n" for line in sorted(self.kept)) + more


@dataclass(slots=True, kw_only=True)
class _Lists:
    """Paths relative to the working directory, for a box of ours to read: see `compare`."""

    before: dict[str, list[str]] = field(default_factory=lambda: {"prepared": [], "kept": []})
    after: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_out: _Lines = field(default_factory=_Lines)
    bytes: int = 0

    def add_before(self, relative: str, facts: Facts, where: Mapping[str, str]) -> None:
        """Add a file whose content before is needed, as long as all that is needed fits."""
        self.bytes += facts[1]
        if self.bytes > 2 * MOST_BYTES:
            self.left_out.append(f"{printable(relative)}: too much was changed for one patch")
        else:
            self.before[where[relative]].append(relative)


@dataclass(slots=True)
class _Kept:
    """Content from before, kept in a folder of ours as far as it fits; `where` says of what there is some."""

    place: Path
    where: dict[str, str] = field(default_factory=dict)
    room: int = MOST_BYTES
    count: int = 0

    def add(self, root: Path, path: str, relative: str, found: os.stat_result) -> None:
        if found.st_size <= min(LARGEST_FILE_BYTES, self.room) and self.count < MOST_FILES:
            _keep(root, path, self.place / "kept" / relative)
            self.where[relative], self.room, self.count = "kept", self.room - found.st_size, self.count + 1


@dataclass(slots=True)
class _Before:
    """The files before the agent began: the noted entries of what the box wrote, and the layers below.

    Those of the paths `hiding` hide what the layers have below them.
    """

    at: int
    entries: Mapping[str, Facts]
    hiding: frozenset[str]
    layers: Layers

    def find(self, path: str) -> Facts | None:
        if path in self.entries:
            facts = self.entries[path]
            return None if stat.S_ISCHR(facts[0]) else facts
        found = self.in_layers(path)
        return None if found is None else _facts(found[1])

    def in_layers(self, path: str) -> tuple[Path, os.stat_result] | None:
        """Find what was seen of the layers at a path, with the layer's root."""
        if path in self.entries or any(above in self.hiding for above in _above(path)):
            return None
        return self.layers.find(path)

    def below(self, folder: str) -> Iterator[tuple[str, Facts]]:
        """Yield what was seen of the layers at a path and below it."""
        for path in (folder, *(each for each, _ in self.layers.walk(folder))):
            if found := self.in_layers(path):
                yield path, _facts(found[1])


def remember(written: Written, *, directory: str, prepared: Path | None, keep: Path) -> None:
    """Note into the empty folder `keep` how what the box has `written` is before its agent begins.

    `directory` is the working directory, `prepared` the tree that the box was begun with. Of the working directory the
    content is kept that is not in there. Raises OSError.
    """
    at = time.time_ns()
    entries: dict[str, Facts] = {}
    hiding, kept = set[str](), _Kept(keep)
    for path, found in walk(written.own, skip=frozenset({"tmp"})):
        entries[path] = _facts(found)
        if not stat.S_ISDIR(found.st_mode) or (written.lowers and is_opaque(f"{written.own}/{path}")):
            hiding.add(path)
        relative = _in_work(path, directory)
        if relative is None or _is_git(relative) or not _is_content(found):
            continue
        if prepared is not None and _is_as_prepared(prepared / path, found):
            kept.where[relative] = "prepared"
        else:
            kept.add(written.own, path, relative, found)
        if PurePosixPath(relative).name == ".gitignore" and relative in kept.where:
            _keep(written.own, path, keep / "ignores" / relative)
    (keep / "before").write_bytes(marshal.dumps((at, entries, hiding if written.lowers else set(), kept.where)))


def compare(written: Written, *, directory: str, keep: Path, environment: Mapping[str, str]) -> Changes:
    """Compare what a box has `written` with what `remember` noted, and write lists for the patch into the same folder.

    These are, NUL between their paths: `prepared.list` and `kept.list` (may have changed, or are gone; their content
    before is in the prepared tree or in `kept/`), `after.list` (may have changed, or are new), `new.list` (of these,
    the new ones); and as lines `left-out` (what is too large or too much for a patch, and why) and `changes.txt`
    (what is not in the working directory and not in /tmp). `environment` are the scenario's variables, PATH and
    PYTHONPATH among them. Raises OSError.
    """
    at, entries, hiding, where = marshal.loads((keep / "before").read_bytes())  # noqa: S302 - nobody else's
    before = _Before(at, entries, frozenset(hiding), Layers(written.lowers))
    comparison = _Comparison(
        own=written.own,
        directory=directory,
        before=before,
        kept=_Kept(keep, where),
        loaded=_Loaded.by(environment, directory, before),
    )
    for path, found in walk(written.own, skip=frozenset({"tmp"})):
        comparison.look(path, found)
    comparison.look_for_removed()
    comparison.write(keep)
    system, leading = comparison.system.kept, comparison.leading
    return Changes(system=tuple(sorted(set(system))), leading=tuple(sorted(leading)))


@dataclass(slots=True, kw_only=True)
class _Comparison:
    """The lists of one comparison, entry by entry of what the box has written now."""

    own: Path
    directory: str
    before: _Before
    kept: _Kept
    loaded: "_Loaded"
    lists: _Lists = field(default_factory=_Lists)
    outside: _Lines = field(default_factory=_Lines)
    system: _Lines = field(default_factory=_Lines)
    leading: list[str] = field(default_factory=list)
    git: int = 0
    seen: set[str] = field(default_factory=set)
    #: Paths below which nothing of the layers is seen any more.
    hiding: list[str] = field(default_factory=list)
    #: Bytes that may still be read to find files that are what they were.
    readable: int = MOST_BYTES

    def look(self, path: str, found: os.stat_result) -> None:
        """Put an entry on the lists that it belongs on."""
        self.seen.add(path)
        before, is_folder = self.before.find(path), stat.S_ISDIR(found.st_mode)
        was_folder = before is not None and stat.S_ISDIR(before[0])
        if was_folder and not (is_folder and not is_opaque(f"{self.own}/{path}")):
            self.hiding.append(path)
        if is_whiteout(found):
            if before is not None:
                self._remove(path, before)
            return
        if before is not None and is_folder != was_folder:
            self._remove(path, before)
            before = None
        relative = _in_work(path, self.directory)
        is_same = self._is_same(path, found, before)
        if is_same and (
            relative is None or path not in self.before.entries or found.st_ctime_ns < self.before.at - _RACY
        ):
            return
        if len(os.fsencode(path)) > LONGEST_PATH:
            (self.outside if relative is None else self.lists.left_out).append(
                f"{printable(path)}: the path is too long"
            )
            return
        is_link, is_new = stat.S_ISLNK(found.st_mode), before is None
        if is_link and len(self.leading) < MOST_LINES and _leads_away(self.own, path):
            self.leading.append(path)
            self.system.append(f"/{path}")
        if is_folder:
            if path.count("/") + 1 >= MAX_DEPTH and relative is not None:
                self.lists.left_out.append(f"{printable(relative)}: what is below it, for folders nest deeper")
            if relative is not None or not is_new:
                return
        elif not is_same and self.loaded.has(
            path, is_new=is_new, is_link=is_link, place=self.own
        ):  # else: what is in it
            self.system.append(f"/{path}")
        if relative is None:
            self.outside.append(f"{'new' if is_new else 'changed'} {printable('/' + path)} {found.st_size}")
        elif not _is_git(relative):
            self._keep_of_layer(path, relative)
            _list_changed(self.lists, relative, before, found, self.kept.where)
        elif _GITS_OWN.fullmatch(_in_git(relative)):
            self.git += 1
        else:
            self.lists.left_out.append(f"{printable(relative)}: a file that is none of git's, in a folder of that name")

    def look_for_removed(self) -> None:
        """Put on the lists what was there and is not seen any more."""
        for path, facts in self.before.entries.items():
            if path not in self.seen and not stat.S_ISCHR(facts[0]):
                self._remove(path, facts)
        for folder in self.hiding:
            for path, facts in islice(self.before.below(folder), MOST_REMOVED):
                if path not in self.seen:
                    self._remove(path, facts)

    def write(self, keep: Path) -> None:
        if self.git:
            self.outside.append(f"changed {printable(self.directory.rstrip('/'))}/.git: {self.git} entries")
        work = self.directory.strip("/")
        for folder in {"", *(above for path in self.lists.new for above in _above(path))}:
            relative = posixpath.join(folder, ".gitignore")
            found = self.before.in_layers(posixpath.join(work, relative))
            if found and _is_content(found[1]) and found[1].st_size <= LARGEST_FILE_BYTES:
                _keep(found[0], posixpath.join(work, relative), keep / "ignores" / relative)
        for name, paths in {**self.lists.before, "after": self.lists.after, "new": self.lists.new}.items():
            (keep / f"{name}.list").write_bytes(b"".join(os.fsencode(path) + b"\0" for path in sorted(paths)))
        (keep / "left-out").write_text(self.lists.left_out.text)
        (keep / "changes.txt").write_text(self.outside.text)

    def _is_same(self, path: str, found: os.stat_result, before: Facts | None) -> bool:
        """Tell whether an entry is what it was: not written at all, or a copy of what a layer has."""
        if path in self.before.entries or before is None:
            return before == _facts(found)
        if before[0] != found.st_mode or before[1] != found.st_size:
            return stat.S_ISDIR(found.st_mode)
        self.readable -= found.st_size
        layer = self.before.in_layers(path)
        return layer is not None and self.readable >= 0 and _have_same_content(layer[0] / path, self.own / path)

    def _remove(self, path: str, facts: Facts) -> None:
        relative = _in_work(path, self.directory)
        if relative is None:
            self.outside.append(f"removed {printable('/' + path)}")
        elif _has_content(facts[0]) and not _is_git(relative):
            self._keep_of_layer(path, relative)
            if relative in self.kept.where:
                self.lists.add_before(relative, facts, self.kept.where)
            else:
                self.lists.left_out.append(f"{printable(relative)}: was removed, and too large before")
        if self.loaded.has(path, is_new=False):
            self.system.append(f"/{path}")

    def _keep_of_layer(self, path: str, relative: str) -> None:
        """Keep the content of a file that a layer has."""
        found = self.before.in_layers(path)
        if found is not None and _is_content(found[1]):
            self.kept.add(found[0], path, relative, found[1])


def _keep(root: Path, path: str, target: Path) -> None:
    """Copy a file or link of `root`; what was kept of it by an earlier comparison gives way. Raises OSError."""
    target.unlink(missing_ok=True)
    copy_file(root, path, target)


def _facts(found: os.stat_result) -> Facts:
    return found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def is_work(path: str) -> bool:
    """Tell whether a path, relative to the box's root, is work where that root is the working directory."""
    return not _NO_WORK.match(path)


def _in_work(path: str, directory: str) -> str | None:
    """Return the path relative to the working directory; None if it is not in there, or the system's."""
    folder = directory.strip("/")
    if not folder:
        return path if is_work(path) else None
    return path.removeprefix(folder + "/") if path.startswith(folder + "/") else None


def _above(path: str) -> Iterator[str]:
    """Yield the folders above a path, the outermost first; "" is none."""
    end = path.find("/")
    while end >= 0:
        yield path[:end]
        end = path.find("/", end + 1)


def _have_same_content(one: Path, other: Path) -> bool:
    """Tell whether two entries of the same mode and size are the same."""
    try:
        mode = one.lstat().st_mode
        if stat.S_ISLNK(mode):
            return os.readlink(one) == os.readlink(other)  # noqa: PTH115
        if not stat.S_ISREG(mode):
            return True
        with open(os.open(one, FILE), "rb") as a, open(os.open(other, FILE), "rb") as b:  # noqa: PTH123
            while (piece := a.read(CHUNK_BYTES)) == b.read(CHUNK_BYTES):
                if not piece:
                    return True
    except OSError:  # a path may be too long
        pass
    return False


def _is_git(relative: str) -> bool:
    return _GIT in relative.split("/")


def _has_content(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _is_content(found: os.stat_result) -> bool:
    return _has_content(found.st_mode)


def _is_as_prepared(place: Path, found: os.stat_result) -> bool:
    """Tell whether a box of ours finds at `place` what is in the devbox: nothing that could lie has run in that yet."""
    try:
        there = place.lstat()
    except OSError:
        return False
    is_readable = stat.S_ISLNK(there.st_mode) or there.st_mode & 0o004 or os.geteuid() != 0
    same = (there.st_mode, there.st_size, there.st_mtime_ns) == (found.st_mode, found.st_size, found.st_mtime_ns)
    if stat.S_ISLNK(there.st_mode):
        same = stat.S_ISLNK(found.st_mode) and there.st_size == found.st_size
    return bool(is_readable) and same


def _in_git(relative: str) -> str:
    """Return the path relative to the git folder that it is in."""
    return relative.rpartition(f"{_GIT}/")[2] if f"{_GIT}/" in relative else "HEAD"


def _leads_away(files: Path, path: str) -> bool:
    """Tell whether a link leads to a place that only exists for scorers."""
    try:
        target = os.readlink(files / path)  # noqa: PTH115
    except OSError:
        return False
    return bool(_HIDDEN.match(posixpath.normpath(posixpath.join("/", posixpath.dirname(path), target))))


def _list_changed(
    lists: _Lists, relative: str, before: Facts | None, found: os.stat_result, where: Mapping[str, str]
) -> None:
    """List a file of the working directory that may have changed, or is new, or say why it cannot be in the patch."""
    is_new = before is None or not _has_content(before[0])
    if not _is_content(found):
        if before is not None and relative in where:
            lists.add_before(relative, before, where)
        lists.left_out.append(f"{printable(relative)}: no file, link or folder")
    elif not is_new and relative not in where:
        lists.left_out.append(f"{printable(relative)}: was too large before")
    elif found.st_size > LARGEST_FILE_BYTES:
        lists.left_out.append(
            f"{printable(relative)}: {found.st_size:,} bytes; {LARGEST_FILE_BYTES:,} fit into a patch"
        )
    elif len(lists.after) >= MOST_FILES or lists.bytes + found.st_size > MOST_BYTES:
        lists.left_out.append(f"{printable(relative)}: too much was changed for one patch")
    else:
        lists.bytes += found.st_size
        lists.after.append(relative)
        if before is not None and _has_content(before[0]):
            lists.add_before(relative, before, where)
        else:
            lists.new.append(relative)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """Places, as relative paths, where a scorer finds programs and modules that it did not bring."""

    work: str
    programs: tuple[str, ...]
    modules: tuple[str, ...]
    before: _Before
    is_image: bool

    @classmethod
    def by(cls, environment: Mapping[str, str], directory: str, before: _Before) -> "_Loaded":
        """Read the scenario's variables."""
        is_image = before.layers.is_any
        path = environment.get("PATH", _IMAGE_PATH if is_image else "")
        programs, modules = (
            tuple(folder.strip("/") + "/" for folder in value.split(":") if folder.strip("/"))
            for value in (path, environment.get("PYTHONPATH", ""))
        )
        work = directory.strip("/") + "/"
        return cls(work=work, programs=programs, modules=modules, before=before, is_image=is_image)

    def has(self, path: str, *, is_new: bool, is_link: bool = False, place: Path | None = None) -> bool:
        """Tell whether a scorer may load what is at `path`, in the tree at `place`.

        New modules in the working directory are what it tests. In an image new programs and modules of the system are
        what an agent installed, but for those that come before another of their name, or are loaded unasked.
        """
        if _HOOK.search(path) or (_PACKAGES.search(path) and not is_new):
            return True
        folder, _, name = path.rpartition("/")
        if path.startswith(self.programs) and not (self.work in self.programs and path.startswith(self.work)):
            comes_first = any(self.before.find(f"{each}{name}") for each in self.programs)
            if not (self.is_image and is_new) or comes_first:
                return True
        if path.startswith(self.work):
            relative = path.removeprefix(self.work)
            shadows = relative.partition("/")[0].removesuffix(".py") in sys.stdlib_module_names
            runs = _is_git(relative) and _GIT_RUNS.fullmatch(_in_git(relative))
            return bool(runs or (is_new and shadows) or (not is_new and self._is_called(path, relative)))
        is_above = name in _SETTINGS and self.work.startswith(f"{folder}/" if folder else "")
        is_hidden = is_link and re.match(r"(home/[^/]+|root)/\.[^/]+$", path)
        if path.startswith(self.modules) or is_above or is_hidden or _START_UP.fullmatch(path):
            return True
        if self.is_image and is_new:
            return _is_plugin(place, path)
        return bool(_PACKAGES.search(path) or _SYSTEM.match(path))

    def _is_called(self, path: str, relative: str) -> bool:
        """Tell whether it is a program that tests call by its path, as those of a virtual environment."""
        virtual = (f"{path[: match.start()]}/{_VIRTUAL}" for match in re.finditer("/bin/", path))
        return bool(_PROGRAMS.search(relative) or any(self.before.find(each) for each in virtual))


def _is_plugin(place: Path | None, path: str) -> bool:
    """Tell whether a package names a module that pytest loads by itself."""
    if place is None or not _ENTRY_POINTS.search(path):
        return False
    try:
        with open(os.open(place / path, FILE), "rb") as file:  # noqa: PTH123
            return b"[pytest11]" in file.read(CHUNK_BYTES)
    except OSError:
        return False
