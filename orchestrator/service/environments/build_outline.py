"""The text of a Dockerfile taken apart: stages and what each needs, flags, and words with their variables filled in.

Its secret: how much a word may cost. Variables may hold variables that hold variables, and a pattern as in `${A#*x*y}`
is tried at all places, so a page of text could ask for all memory, or for hours; such words are refused.

The reader itself is a port of BuildKit's. Functions for words raise ValueError, which says what is accepted, or the
fix; `Mistakes` knows the line.
"""

import csv
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Final

from e2b_dockerfile_utils import (
    DockerfileAst,
    DockerfileInstruction,
    DockerfileSyntaxError,
    ShellLex,
    parse_dockerfile_ast,
)

from orchestrator.service.diagnostics import NAMED, clipped, hint, printable
from orchestrator.service.environments.build_steps import Base, BaseImage, FromImage, FromNothing, FromStage

#: More lines no person writes; Docker gives up at some hundred layers.
MAX_INSTRUCTIONS: Final = 1_000
#: Characters of a value. Linux gives no longer one to a program.
MAX_VALUE_CHARS: Final = (1 << 17) - 1
#: Characters of all words of a file while their variables are filled in: some two seconds.
MAX_FILLED_CHARS: Final = 1 << 21
#: Steps of a match of `${NAME#pattern}` at worst, and how many take as long as a character.
_MAX_MATCHING: Final = 1e7
_STEPS_PER_CHAR: Final = 50
#: Characters of one message; a longer one loses its middle.
_MESSAGE_CHARS: Final = 500
_INSTRUCTIONS: Final = (
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER"),
    *("ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
)
_NOT_IN_TRIGGERS: Final = frozenset({"FROM", "ONBUILD", "MAINTAINER"})
_FLAGS: Final[Mapping[str, tuple[str, ...]]] = {
    "FROM": ("platform",),
    "RUN": ("mount", "network"),
    "COPY": ("from", "chown", "chmod", "link", "parents", "exclude"),
    "ADD": ("chown", "chmod", "link", "exclude", "checksum", "keep-git-dir", "unpack"),
    "HEALTHCHECK": ("interval", "timeout", "start-period", "start-interval", "retries"),
}
_SWITCHES: Final = frozenset({"link", "parents", "keep-git-dir", "unpack"})
_REPEATED: Final = frozenset({"mount", "exclude"})
_MOUNT_KEYS: Final = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}
_VARIABLE: Final = re.compile(r"\$\{?(\w+)")
_CHANGED: Final = re.compile(r"\$\{(\w+)[#%/]((?:\\.|[^}\\])*)", re.DOTALL)
_STAGE_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]*")
_PLATFORM: Final = re.compile(r"[a-z0-9]+/[a-z0-9_]+(/[a-z0-9.]+)?")


class DockerfileError(Exception):
    """A Dockerfile cannot be built; `mistakes` are (line, why), each with what is accepted or the fix."""

    def __init__(self, file: str, mistakes: Sequence[tuple[int, str]]) -> None:
        self.file = file
        half = _MESSAGE_CHARS // 2
        self.mistakes = tuple(
            (line, printable(why if len(why) <= 2 * half else f"{why[:half]} … {why[-half:]}"))
            for line, why in mistakes
        )
        named = "; ".join(f"{printable(file)}:{line}: {why}" for line, why in self.mistakes[:NAMED])
        super().__init__(named + (f"; and {len(mistakes) - NAMED} more" if len(mistakes) > NAMED else ""))


class Mistakes:
    """The mistakes in a file so far."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._found: list[tuple[int, str]] = []

    @contextmanager
    def at(self, instruction: DockerfileInstruction) -> Iterator[None]:
        """Take a ValueError for a mistake in this instruction."""
        try:
            yield
        except ValueError as error:
            self._found.append((instruction.start_line, f"{instruction.name}: {error}"))

    def add(self, line: int, why: str) -> None:
        self._found.append((line, why))

    def check(self) -> None:
        """Raise DockerfileError if there are any."""
        if self._found:
            raise DockerfileError(self._file, self._found)


def parse(text: str, mistakes: Mistakes) -> DockerfileAst:
    """Take the text apart. Raises DockerfileError."""
    if "\0" in text:
        mistakes.add(text[: text.index("\0")].count("\n") + 1, "has a character NUL: remove it")
    mistakes.check()
    try:
        parsed = parse_dockerfile_ast(text)
    except DockerfileSyntaxError as error:
        why = re.sub(r"^Dockerfile parse error( on line \d+)?: ", "", str(error))
        if (word := why.removeprefix("unknown instruction: ")) != why:
            why = f"unknown instruction {clipped(word)}; {hint(word.upper(), _INSTRUCTIONS, accepted(_INSTRUCTIONS))}"
        elif why == "unterminated heredoc":
            why = "the here-document has no end: expected a line with its name alone"
        mistakes.add(error.line or 1, why)
    mistakes.check()
    if len(parsed.instructions) > MAX_INSTRUCTIONS:
        line = parsed.instructions[MAX_INSTRUCTIONS].start_line
        mistakes.add(line, f"is more than instruction {MAX_INSTRUCTIONS:,}: join commands to one RUN")
    mistakes.check()
    return parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A stage as it was written, the ONBUILD lines of its base first."""

    number: int
    name: str
    opening: DockerfileInstruction
    base: Base
    instructions: list[DockerfileInstruction]


class Outline:
    """The stages of a file and how they depend on each other. Raises DockerfileError."""

    def __init__(
        self,
        parsed: DockerfileAst,
        mistakes: Mistakes,
        platform: str,
        build_args: Mapping[str, str],
        images: Mapping[str, BaseImage],
    ) -> None:
        self.words = Words(parsed.escape_token)
        self.platform = platform
        self.build_args = build_args
        self.images = images
        system, architecture, variant, *_ = *platform.split("/"), "", ""
        facts = {"PLATFORM": platform, "OS": system, "ARCH": architecture, "VARIANT": variant}
        usual = {f"{whose}{name}": value for whose in ("TARGET", "BUILD") for name, value in facts.items()}
        self.arguments = {**usual, **build_args}
        self.drafts: list[Draft] = []
        self._names: dict[str, int] = {}
        self._mistakes = mistakes
        for instruction in parsed.instructions:
            with mistakes.at(instruction):
                if instruction.name == "FROM":
                    self._open(instruction)
                elif self.drafts:
                    self.drafts[-1].instructions.append(instruction)
                elif instruction.name == "ARG":
                    self._declare(instruction)
                else:
                    raise ValueError("stands before the first FROM, where only ARG may: begin with FROM IMAGE")
        mistakes.check()
        if not self.drafts:
            mistakes.add(1, "has no FROM: begin with FROM IMAGE, or FROM scratch")
            mistakes.check()

    def _declare(self, instruction: DockerfileInstruction) -> None:
        """Take an ARG before the first FROM."""
        for name, value in arguments_of(instruction):
            if name not in self.build_args and value is not None:
                self.arguments[name] = self.words.fill(value, self.arguments)

    def _open(self, instruction: DockerfileInstruction) -> None:
        """Begin a stage. Raises ValueError."""
        number, words = len(self.drafts), instruction.args
        is_named = len(words) == 3 and words[1].upper() == "AS"
        if len(words) != 1 and not is_named:
            raise ValueError("expected FROM IMAGE or FROM IMAGE AS NAME")
        name = words[2].lower() if is_named else ""
        if is_named and (not _STAGE_NAME.fullmatch(name) or name in {"scratch", "context"}):
            raise ValueError(f"{words[2]} is no name for a stage: use letters, digits, _, - and ., a letter first")

        flags = flags_of(instruction)
        word = self.words.fill(words[0], self.arguments)
        if not word:
            raise ValueError(f"{words[0]} is empty: give ARG a default before this line")
        if word.isdecimal():
            raise ValueError(f"{word} is no image: give the stage a name, FROM … AS name, and write FROM name")
        platform = self.words.fill(flags.get("platform", [""])[0], self.arguments) or self.platform
        if not _PLATFORM.fullmatch(platform):
            raise ValueError(f"--platform={platform}: expected an operating system and an architecture: linux/amd64")
        base: Base = FromImage(reference=word, platform=platform)
        on_build: Sequence[str] = ()
        if word.lower() in self._names:
            base = FromStage(number=self._names[word.lower()])
            on_build = [rest_of(each) for each in self.drafts[base.number].instructions if each.name == "ONBUILD"]
        elif word == "scratch":
            base = FromNothing()
        elif word in self.images:
            on_build = self.images[word].config.on_build

        draft = Draft(number=number, name=name, opening=instruction, base=base, instructions=[])
        for line in on_build:
            trigger = parse_trigger(line)
            trigger.start_line = instruction.start_line
            draft.instructions.append(trigger)
        self.drafts.append(draft)
        if sum(len(each.instructions) for each in self.drafts) > MAX_INSTRUCTIONS:
            raise ValueError(f"the ONBUILD lines of its base make more than {MAX_INSTRUCTIONS:,} instructions in all")
        if name:
            self._names[name] = number

    def origin(self, word: str, number: int) -> Base:
        """Return what `--from=WORD` means in a stage. Raises ValueError."""
        if "$" in word:
            raise ValueError(f"from={word}: variables do not count here; name a stage, FROM {word} AS name, and use it")
        if word == "scratch":
            return FromNothing()
        if not word.isdecimal() and word.lower() not in self._names:
            return FromImage(reference=word, platform=self.platform)
        found = int(word) if word.isdecimal() else self._names[word.lower()]
        if found >= len(self.drafts):
            raise ValueError(f"from={word}: there is no such stage; they have the numbers 0 to {len(self.drafts) - 1}")
        if found == number:
            raise ValueError(f"from={word}: a stage cannot copy from itself; leave the flag out")
        return FromStage(number=found)

    def needed(self, target: str | None) -> list[Draft]:
        """Return the stages that a target needs, each after those it needs. Raises DockerfileError."""
        first = len(self.drafts) - 1
        if target is not None:
            first = self._names.get(target.lower(), int(target) if target.isdecimal() else len(self.drafts))
        if first >= len(self.drafts):
            there = [*self._names, *(str(draft.number) for draft in self.drafts)]
            line = self.drafts[0].opening.start_line
            self._mistakes.add(line, f"there is no stage {clipped(str(target))} to build; {accepted(there)}")
            self._mistakes.check()
        graph: dict[int, list[int]] = {}
        left = [first]
        while left:
            number = left.pop()
            if number not in graph:
                graph[number] = list(self._dependencies(self.drafts[number]))
                left += graph[number]
        try:
            order = list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            line = self.drafts[min(error.args[1])].opening.start_line
            self._mistakes.add(line, "the stage needs itself, by way of others: take one COPY --from out of the circle")
            self._mistakes.check()
            raise
        return [self.drafts[number] for number in order]

    def _dependencies(self, draft: Draft) -> Iterator[int]:
        """Yield the stages that a stage starts from and reads; what is wrong with them is found when it is read."""
        if isinstance(draft.base, FromStage):
            yield draft.base.number
        for instruction in draft.instructions:
            with suppress(ValueError):
                flags = flags_of(instruction)
                mounts = [dict(fields_of_mount(text)) for text in flags.get("mount", ())]
                for word in (*flags.get("from", ()), *(mount["from"] for mount in mounts if "from" in mount)):
                    origin = self.origin(word, draft.number)
                    if isinstance(origin, FromStage):
                        yield origin.number


class Words:
    """Fills in the variables of all words of one file, whose `escape` is its escape character."""

    def __init__(self, escape: str) -> None:
        self._escape = escape
        self._left = MAX_FILLED_CHARS

    def fill(self, word: str, variables: Mapping[str, str]) -> str:
        """Return a word without its quotes, with all variables filled in. Raises ValueError."""
        if not {"$", "'", '"', self._escape} & set(word):
            return word
        self._spend(word, variables)
        value = _process(ShellLex(self._escape, env=variables, skip_unset_env=False), word)
        if len(value) > MAX_VALUE_CHARS:
            raise ValueError(f"{clipped(word)} becomes longer than {MAX_VALUE_CHARS:,} characters: make it shorter")
        return value

    def fill_text(self, text: str, variables: Mapping[str, str]) -> str:
        """Return a here-document with all variables filled in; its quotes are text. Raises ValueError."""
        self._spend(text, variables)
        return _process(ShellLex("\\", skip_process_quotes=True, env=variables, skip_unset_env=False), text)

    def _spend(self, word: str, variables: Mapping[str, str]) -> None:
        """Raise ValueError for a word that would take gigabytes, or hours, together with those before it."""
        values = [variables.get(name, "") for name in _VARIABLE.findall(word)]
        size = len(word) + sum(map(len, values))
        for name, pattern in _CHANGED.findall(word):
            value, stars = variables.get(name, ""), pattern.count("*")
            if "$" in pattern:
                stars = word.count("*") + sum(each.count("*") for each in values)
            steps = (stars + 1) * math.log(len(value) + 1)
            if steps > math.log(_MAX_MATCHING):
                raise ValueError(f"{clipped(word)} has too many * for a value of {len(value):,} characters: use fewer")
            size += len(value) * len(pattern) + int(math.exp(steps)) // _STEPS_PER_CHAR
        if size > self._left:
            raise ValueError(f"{clipped(word)} makes more than {MAX_FILLED_CHARS:,} characters of values in all")
        self._left -= size


def _process(lexer: ShellLex, word: str) -> str:
    """Return a word as the lexer makes it. Raises ValueError, without the word as a whole."""
    try:
        return lexer.process_word(word)
    except ValueError as error:
        why = str(error).removeprefix(f"failed to process {word!r}: ")
        raise ValueError(f"{clipped(word)}: {why}") from None


def flags_of(instruction: DockerfileInstruction) -> dict[str, list[str]]:
    """Return the values of an instruction's flags by name. Raises ValueError."""
    known = _FLAGS.get(instruction.name, ())
    found: dict[str, list[str]] = {}
    for flag in instruction.flags:
        name, sign, value = flag[2:].partition("=")
        if name not in known:
            usual = accepted([f"--{each}" for each in known]) if known else "it has none"
            raise ValueError(f"unknown flag --{clipped(name)}; {hint(name, known, usual)}")
        if name in _SWITCHES:
            value = str(truth(value if sign else "true", f"--{name}")).lower()
        elif not value:
            raise ValueError(f"--{name} needs a value: --{name}=VALUE")
        if name in found and name not in _REPEATED:
            raise ValueError(f"--{name} is there twice: leave one out")
        found.setdefault(name, []).append(value)
    return found


def arguments_of(instruction: DockerfileInstruction) -> Iterator[tuple[str, str | None]]:
    """Yield the names and values of an ARG. Raises ValueError."""
    for word in instruction.args:
        name, sign, value = word.partition("=")
        if not name:
            raise ValueError("a name is empty: expected NAME or NAME=value")
        yield name, value if sign else None


def fields_of_mount(text: str) -> Iterator[tuple[str, str]]:
    """Yield the keys and values of --mount. Raises ValueError."""
    try:
        entries = [entry for row in csv.reader([text]) for entry in row]
    except csv.Error as error:
        raise ValueError(f"--mount={clipped(text)}: {error}") from None
    for entry in entries:
        key, sign, value = entry.partition("=")
        key = key.strip().lower()
        yield _MOUNT_KEYS.get(key, key), value if sign else "true"


def parse_trigger(line: str) -> DockerfileInstruction:
    """Read the instruction that an ONBUILD leaves to the children of its image. Raises ValueError."""
    parsed = parse_dockerfile_ast(line).instructions
    if len(parsed) != 1 or parsed[0].name in _NOT_IN_TRIGGERS:
        raise ValueError(f"expected one instruction, and none of {', '.join(sorted(_NOT_IN_TRIGGERS))}")
    return parsed[0]


def rest_of(instruction: DockerfileInstruction) -> str:
    """Return an ONBUILD without its first word."""
    return instruction.original.strip()[len(instruction.name) :].strip()


def accepted(words: Collection[str]) -> str:
    return f"accepted: {', '.join(words)}"


def truth(word: str, what: str) -> bool:
    """Return the value of a switch. Raises ValueError."""
    if word.lower() not in {"true", "false", "1", "0"}:
        raise ValueError(f"{what}: {clipped(word)} is neither true nor false")
    return word.lower() in {"true", "1"}
