"""Changes that an agent made in its devbox, found from outside: its files as they were, and as they are.

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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from orchestrator.core.printable import printable
from orchestrator.service.sandbox.safe_fs import MAX_DEPTH, copy_file, walk

#: Of one patch: files in it, their bytes, and bytes of one of them.
MOST_FILES: Final = 100_000
MOST_BYTES: Final = 1 << 30
LARGEST_FILE_BYTES: Final = 32 << 20
#: Lines of `changes.txt`, and of what stays out of a patch; characters of one line, and bytes of a path that is listed.
MOST_LINES: Final = 5000
LONGEST_LINE: Final = 400
LONGEST_PATH: Final = 4096
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
    r"|etc/(ld\.so\S*|environment|profile\S*|bash\S*|gitconfig|pip\.conf|python\S*/.*|npmrc|inputrc|hosts|ssl/.*"
    r"|alternatives/.*)"
)
_PACKAGES: Final = re.compile(r"(^|/)(site-packages|dist-packages)(/|$)")
_HOOK: Final = re.compile(r"(^|/)(sitecustomize|usercustomize)\.py$|\.pth$")
#: The file that makes a folder a virtual environment, whose programs tests call by their paths.
_VIRTUAL: Final = "pyvenv.cfg"
#: Programs of packages in the working directory, which tests call too.
_PROGRAMS: Final = re.compile(rf"(^|/)(node_modules/\.bin/[^/]+|{re.escape(_VIRTUAL)})$")
#: Files that test runners read in the folders above the working directory.
_SETTINGS: Final = frozenset({"conftest.py", "pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml", "package.json"})
#: Places that only exist, or mean something else, when scorers run: what an agent's link leads to there is not its own.
_HIDDEN: Final = re.compile(r"/(tests|run|proc|logs/verifier|evidence)(/|$)")
_SYSTEM: Final = re.compile(r"(usr|bin|sbin|lib\w*|opt)(/|$)")

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


def remember(files: Path, *, directory: str, prepared: Path | None, keep: Path) -> None:
    """Note into the empty folder `keep` how the box's own `files` are before its agent begins.

    `directory` is the working directory, `prepared` the tree that the box was begun with. Of the working directory the
    content is kept that is not in there. Raises OSError.
    """
    work = directory.strip("/")
    at = time.time_ns()
    entries: dict[str, Facts] = {}
    where: dict[str, str] = {}
    room, kept = MOST_BYTES, 0
    for path, found in walk(files, skip=frozenset({"tmp"})):
        entries[path] = _facts(found)
        relative = _below(path, work)
        if relative is None or _is_git(relative) or not _is_content(found):
            continue
        if prepared is not None and _is_as_prepared(prepared / path, found):
            where[relative] = "prepared"
        elif found.st_size <= min(LARGEST_FILE_BYTES, room) and kept < MOST_FILES:
            copy_file(files, path, keep / "kept" / relative)
            where[relative], room, kept = "kept", room - found.st_size, kept + 1
        if PurePosixPath(relative).name == ".gitignore" and relative in where:
            copy_file(files, path, keep / "ignores" / relative)
    (keep / "before").write_bytes(marshal.dumps((at, entries, where)))


def compare(files: Path, *, directory: str, keep: Path, environment: Mapping[str, str]) -> Changes:
    """Compare the box's `files` with what `remember` noted, and write lists for the patch into the same folder.

    These are, NUL between their paths: `prepared.list` and `kept.list` (may have changed, or are gone; their content
    before is in the prepared tree or in `kept/`), `after.list` (may have changed, or are new), `new.list` (of these,
    the new ones); and as lines `left-out` (what is too large or too much for a patch, and why) and `changes.txt`
    (what is not in the working directory and not in /tmp). `environment` are the scenario's variables, PATH and
    PYTHONPATH among them. Raises OSError.
    """
    at, entries, where = marshal.loads((keep / "before").read_bytes())  # noqa: S302 - written above, and nobody else's
    work, loaded = directory.strip("/"), _Loaded.by(environment, directory, entries)
    lists, outside, system, leading = _Lists(), _Lines(), _Lines(), list[str]()
    git = 0
    for path, found in walk(files, skip=frozenset({"tmp"})):
        relative, before = _below(path, work), entries.pop(path, None)
        is_same = before == _facts(found)
        if is_same and (relative is None or before[3] < at - _RACY):
            continue
        if len(os.fsencode(path)) > LONGEST_PATH:
            (outside if relative is None else lists.left_out).append(f"{printable(path)}: the path is too long")
            continue
        is_link, is_new = stat.S_ISLNK(found.st_mode), before is None
        if is_link and len(leading) < MOST_LINES and _leads_away(files, path):
            leading.append(path)
            system.append(f"/{path}")
        if stat.S_ISDIR(found.st_mode):
            if path.count("/") + 1 >= MAX_DEPTH and relative is not None:
                lists.left_out.append(f"{printable(relative)}: what is below it, for folders nest deeper")
            if relative is not None or before is not None:
                continue
        elif not is_same and loaded.has(path, is_new=is_new, is_link=is_link):  # of a folder, what is in it is loaded
            system.append(f"/{path}")
        if relative is None:
            outside.append(f"{'new' if is_new else 'changed'} {printable('/' + path)} {found.st_size}")
        elif not _is_git(relative):
            _list_changed(lists, relative, before, found, where)
        elif _GITS_OWN.fullmatch(_in_git(relative)):
            git += 1
        else:
            lists.left_out.append(f"{printable(relative)}: a file that is none of git's, in a folder of that name")
    for path, facts in entries.items():
        relative = _below(path, work)
        if relative is None:
            outside.append(f"removed {printable('/' + path)}")
        elif relative in where:
            lists.add_before(relative, facts, where)
        elif not _is_git(relative) and _has_content(facts[0]):
            lists.left_out.append(f"{printable(relative)}: was removed, and too large before")
        if loaded.has(path, is_new=False):
            system.append(f"/{path}")
    if git:
        outside.append(f"changed {printable(directory.rstrip('/'))}/.git: {git} entries")
    _write(keep, lists, outside)
    return Changes(system=tuple(sorted(set(system.kept))), leading=tuple(sorted(leading)))


def _facts(found: os.stat_result) -> Facts:
    return found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _below(path: str, folder: str) -> str | None:
    """Return the path relative to a folder; None if it is not in it."""
    if not folder:
        return path
    return path.removeprefix(folder + "/") if path.startswith(folder + "/") else None


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
    """Folders in which a scorer finds programs and modules that it did not bring, as relative paths."""

    work: str
    programs: tuple[str, ...]
    virtual: tuple[str, ...]
    modules: tuple[str, ...]

    @classmethod
    def by(cls, environment: Mapping[str, str], directory: str, entries: Iterable[str]) -> "_Loaded":
        """Read the scenario's variables, and find the virtual environments among the box's `entries`."""
        virtual = tuple(f"{posixpath.dirname(path)}/bin/" for path in entries if posixpath.basename(path) == _VIRTUAL)
        programs, modules = (
            tuple(folder.strip("/") + "/" for folder in environment.get(name, "").split(":") if folder.strip("/"))
            for name in ("PATH", "PYTHONPATH")
        )
        return cls(work=directory.strip("/") + "/", programs=programs, virtual=virtual, modules=modules)

    def has(self, path: str, *, is_new: bool, is_link: bool = False) -> bool:
        """Tell whether a scorer may load what is at `path`. New modules in the working directory are what it tests."""
        if _HOOK.search(path) or (_PACKAGES.search(path) and not is_new):
            return True
        if path.startswith(self.programs) and not (self.work in self.programs and path.startswith(self.work)):
            return True
        if path.startswith(self.work):
            relative = path.removeprefix(self.work)
            shadows = relative.partition("/")[0].removesuffix(".py") in sys.stdlib_module_names
            runs = _is_git(relative) and _GIT_RUNS.fullmatch(_in_git(relative))
            is_program = path.startswith(self.virtual) or _PROGRAMS.search(relative)
            return bool(runs or (is_new and shadows) or (not is_new and is_program))
        folder, _, name = path.rpartition("/")
        is_above = name in _SETTINGS and self.work.startswith(f"{folder}/" if folder else "")
        is_module = path.startswith(self.modules) or _PACKAGES.search(path) or is_above
        is_hidden = is_link and re.match(r"(home/[^/]+|root)/\.[^/]+$", path)
        return bool(is_module or is_hidden or _START_UP.fullmatch(path) or _SYSTEM.match(path))


def _write(keep: Path, lists: _Lists, outside: _Lines) -> None:
    for name, paths in {**lists.before, "after": lists.after, "new": lists.new}.items():
        (keep / f"{name}.list").write_bytes(b"".join(os.fsencode(path) + b"\0" for path in sorted(paths)))
    (keep / "left-out").write_text(lists.left_out.text)
    (keep / "changes.txt").write_text(outside.text)
