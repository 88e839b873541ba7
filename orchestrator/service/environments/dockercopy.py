"""COPY with Docker's rules: the files that a source means, and their places in a tree.

The tree may come out of a devbox in which commands of a stranger ran, so its links are followed as a devbox would
follow them, from the tree's own root; a link to /etc leads to the tree's /etc and never to this machine's. Blocking.
"""

import os
import posixpath
import re
import shutil
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.service.content import Listing, Node
from orchestrator.service.environments.build_context import MAX_LINKS, MAX_PATTERNS, glob
from orchestrator.service.environments.dockerfile import Copy
from orchestrator.service.environments.dockerlines import Mistake
from orchestrator.service.sandbox.folders import SYSTEM


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The files that COPY may use: those of a folder without what is left out by path or by .dockerignore."""

    files: Listing

    @classmethod
    def of(cls, files: Listing, *, without: frozenset[str] = frozenset(), ignore: str = "") -> "Context":
        """`without` are paths, `ignore` is the text of a .dockerignore. Raises Mistake naming a bad pattern."""
        rules: list[tuple[re.Pattern[str], bool]] = []
        for line in map(str.strip, ignore.splitlines()):
            if line and not line.startswith("#"):
                if len(rules) == MAX_PATTERNS:
                    raise Mistake(f"has more than {MAX_PATTERNS:,} patterns")
                name = posixpath.normpath(line.lstrip("!").strip().lstrip("/") or ".")
                rules.append((_pattern(name), not line.startswith("!")))

        def is_ignored(path: str) -> bool:
            """Tell by the last pattern that matches the path, or a folder above it."""
            parts = path.split("/")
            above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
            verdict = False
            for pattern, leaves_out in rules:
                if any(pattern.fullmatch(each) for each in above):
                    verdict = leaves_out
            return verdict

        nodes = [
            node for node in files.nodes if node.path.split("/", 1)[0] not in without and not is_ignored(node.path)
        ]
        return cls(files=Listing(tuple(nodes)))

    def select(self, step: Copy) -> list[Node | None]:
        """Return the nodes that the sources of a step mean, None for the whole folder. Raises Mistake."""
        found: list[Node | None] = []
        for source in step.sources:
            name = posixpath.normpath(source.lstrip("/") or ".")
            if name == ".":
                found.append(None)
                continue
            matches = [self.files.find(name)]
            if set("*?[") & set(name):
                pattern = _pattern(name)
                matches = [node for node in self.files.nodes if pattern.fullmatch(node.path)]
            if not any(matches):
                raise Mistake(f"{source} is not in environment/, or is left out by .dockerignore")
            for node in filter(None, matches):
                target: Node | None = node
                if node.kind == "link":  # a link that is named as a source stands for its target
                    above = node.source.parents[node.path.count("/")]
                    target = self.files.find(os.path.relpath(os.path.realpath(node.source), above.resolve()))
                if target is None:
                    raise Mistake(f"{node.path} is a link to {node.target}, which is not there")
                found.append(target)
        if len(found) + len(step.texts) > 1 and not step.is_folder:
            raise Mistake(f"the sources match several files, so the target must end with /: {step.target}/")
        return found

    def inside(self, folder: Node | None) -> list[tuple[str, Node]]:
        """Return the nodes below a folder, with paths relative to it."""
        start = f"{folder.path}/" if folder else ""
        return [(node.path[len(start) :], node) for node in self.files.nodes if node.path.startswith(start)]


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree in the form of `BoxSpec.root`; paths are the devbox's, absolute."""

    root: Path

    def make_folder(self, path: str) -> Path:
        """Make a folder with those above it. Raises Mistake and OSError."""
        place = self._resolved(path)
        for folder in [*reversed(place.relative_to(self.root).parents), place.relative_to(self.root)][1:]:
            each = self.root / folder
            if not each.is_dir():
                if each.exists():
                    raise Mistake(f"{path}: /{folder} is a file")
                each.mkdir()
                each.chmod(0o755)
        return place

    def copy(self, step: Copy, context: Context) -> None:
        """Carry out a COPY. Raises Mistake and OSError."""
        for node in context.select(step):
            if node is None or node.kind == "folder":
                self.make_folder(step.target)
                for path, inner in context.inside(node):
                    self._put(f"{step.target}/{path}", inner, step.mode)
            else:
                target = self._target(step, posixpath.basename(node.path))
                self._put(target, node, step.mode)
        for name, text in step.texts:
            place = self._free(self._target(step, name))
            place.write_text(text)
            place.chmod(0o644 if step.mode is None else step.mode)

    def remove_empty(self, names: Iterable[str]) -> None:
        """Remove top-level folders of these names that are empty."""
        for name in names:
            folder = self.root / name
            if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()

    def _target(self, step: Copy, name: str) -> str:
        is_folder = step.is_folder or self._resolved(step.target).is_dir()
        return f"{step.target}/{name}" if is_folder else step.target

    def _put(self, path: str, node: Node, mode: int | None) -> None:
        if node.kind == "folder":
            self.make_folder(path)
            return
        place = self._free(path)
        if node.kind == "link":
            place.symlink_to(node.target)
        else:
            shutil.copyfile(node.source, place)
            place.chmod(node.mode if mode is None else mode)

    def _free(self, path: str) -> Path:
        """Return a file's place, after making its folder and removing a file in its place. Raises Mistake."""
        place = self.make_folder(posixpath.dirname(path)) / posixpath.basename(path)
        if place.parent in {self.root, self.root / "home"}:
            where = posixpath.dirname(path)
            raise Mistake(f"{path}: a file directly in {where} is not possible here; put it into a folder")
        if place.is_dir() and not place.is_symlink():
            raise Mistake(f"{path} is a folder already")
        place.unlink(missing_ok=True)
        return place

    def _resolved(self, path: str) -> Path:
        """Return the place of a path, links followed from the tree's root. Raises Mistake."""
        left, links = deque(path.split("/")), 0
        done: list[str] = []
        while left:
            part = left.popleft()
            if part in {"", "."}:
                continue
            if part == "..":
                done = done[:-1]
                continue
            here = self.root.joinpath(*done, part)
            if not here.is_symlink():
                done.append(part)
                continue
            links += 1
            if links > MAX_LINKS:
                raise Mistake(f"{path}: too many links")
            target = str(here.readlink())
            done = [] if target.startswith("/") else done
            left.extendleft(reversed(target.split("/")))
        if done and done[0] in SYSTEM:
            raise Mistake(f"{path}: leads to /{done[0]}, which is the system's and read-only in a devbox")
        return self.root.joinpath(*done)


def _pattern(text: str) -> re.Pattern[str]:
    """Compile a pattern of Docker's. Raises Mistake."""
    try:
        return glob(text)
    except ValueError as error:
        raise Mistake(str(error)) from None
