"""The README and the manual as the tests see them: pages, fenced blocks, and what they say to type."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer

from orchestrator.cli import app
from orchestrator.commands import docs

ROOT: Final = Path(__file__).parents[2]
README: Final = (ROOT / "README.md").read_text()
TREE: Final[Any] = typer.main.get_command(app)
#: Every page by its topic, "README" being the project's own and "index" the manual's.
PAGES: Final = {
    "README": README,
    "index": docs.page(docs.INDEX, commands=TREE),
    **{topic: docs.page(topic, commands=TREE) for topic in docs.topics()},
}
#: Why an example is not run: it needs keys, more than seconds, another machine or terminal, or changes this machine.
REASONS: Final = {"keys", "long", "machines", "setup"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block: the words after the fence, and the lines in it."""

    info: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def is_run(self) -> bool:
        return self.info == ("console",)

    @property
    def file(self) -> str | None:
        """The name of the file that it shows, if its first line says one."""
        match = re.fullmatch(r"# ([\w-]+\.\w+)", self.lines[0])
        return match[1] if match else None

    def steps(self) -> Iterator[tuple[str, list[str]]]:
        """Commands to type, each with the output that is shown below it."""
        for step in self.text.removeprefix("$ ").split("\n$ "):
            command, *output = step.rstrip("\n").split("\n")
            yield command, output


def blocks(text: str, kind: str = "") -> list[Block]:
    """The fenced blocks of a page, or those of a kind."""
    found = [
        Block(info=tuple(info.split()), lines=tuple(body.splitlines()))
        for info, body in re.findall(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
    ]
    return [block for block in found if not kind or block.info[0] == kind]


def typed(text: str) -> list[str]:
    """Every command line of a page's console blocks."""
    return [command for block in blocks(text, "console") for command, _ in block.steps()]
