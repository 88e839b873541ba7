"""A Dockerfile as steps this service can take: folders, copies, and commands without root or network.

There is no container engine here and no image is fetched: a devbox is this machine's system with folders of its own.
What a line cannot mean under that is refused by its number, all such lines at once, rather than skipped: a task whose
environment is nearly right scores agents on what is missing. Commands that would install software need root and the
network, which a devbox has not: refused by line before anything is built, they come with a message what to do, which
the package manager's own complaint would not.
"""

import posixpath
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import orjson

from orchestrator.service.diagnostics import Report, nearest
from orchestrator.service.environments.dockerlines import Instruction, Lines, Mistake, expand, split, without_heredocs
from orchestrator.service.sandbox.folders import SYSTEM

FILE: Final = "environment/Dockerfile"
WORKING_DIRECTORY: Final = "/app"
INHERITED_PATH: Final = "\0PATH\0"
"""Stands in values for $PATH, which only a box of the provider knows."""

_HANDLED: Final = ("FROM", "ARG", "ENV", "WORKDIR", "COPY", "ADD", "RUN", "USER", "SHELL")
_NOTED: Final = {
    "CMD": "nothing is started by it: agents run commands of their own",
    "ENTRYPOINT": "nothing is started by it: agents run commands of their own",
    "EXPOSE": "ports need no declaration here",
    "HEALTHCHECK": "ignored",
    "LABEL": "ignored",
    "MAINTAINER": "ignored",
    "STOPSIGNAL": "ignored",
    "VOLUME": "ignored: a devbox keeps all its folders to itself",
}
_USERS: Final = frozenset({"root", "0", "1000", "user", "0:0", "root:root", "1000:1000", "user:user"})
_ARCHIVE: Final = re.compile(r"\.(tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst))$")
_REMOTE: Final = re.compile(r"^(https?|ftp|git|ssh)://|^git@", re.IGNORECASE)
_FLAG: Final = re.compile(r"--([a-z-]+)(?:=(\S*))?(?:\s+|$)")
_MANAGERS: Final = frozenset(
    {"apt", "apt-get", "aptitude", "apk", "dnf", "dpkg", "microdnf", "pacman", "yum", "zypper", "brew", "snap"}
)
_INSTALLERS: Final = frozenset({"pip", "pip3"})
_PREFIXES: Final = frozenset(
    {"sudo", "exec", "command", "env", "time", "nice", "then", "do", "else", "if", "while", "until", "!", "{", "eval"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Make a folder (WORKDIR). Paths of steps are absolute, as in the devbox."""

    line: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Copy from the environment's folder, or write `texts` (name, text), with Docker's rules.

    The target is a folder when `is_folder`, whatever is there. `mode` replaces the files' own modes.
    """

    line: int
    text: str
    sources: tuple[str, ...]
    target: str
    is_folder: bool
    mode: int | None = None
    texts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run a program in a devbox without network, in folder `cwd`."""

    line: int
    text: str
    argv: tuple[str, ...]
    cwd: str
    environment: Mapping[str, str]


Step = Folder | Copy | Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The meaning of a Dockerfile. `owns_setup` says that it handles a file setup.sh itself."""

    steps: tuple[Step, ...] = ()
    working_directory: str = WORKING_DIRECTORY
    environment: Mapping[str, str] = field(default_factory=dict)
    owns_setup: bool = False


def read_dockerfile(text: str, report: Report) -> Recipe:
    """Read a Dockerfile; every line that cannot be carried out is an error in `report`, by its number."""
    lines, reader = Lines(text), _Reader(report)
    for instruction in lines.instructions():
        try:
            reader.take(instruction)
        except Mistake as mistake:
            report.error(FILE, f"line {instruction.line}", f"{instruction.keyword}: {mistake}")
    for line, why in lines.mistakes:
        report.error(FILE, f"line {line}", why)
    return reader.recipe()


class _Reader:
    """The state that one instruction leaves to the next."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._steps: list[Step] = []
        self._working_directory = ""
        self._environment: dict[str, str] = {}
        self._arguments: dict[str, str] = {}
        self._shell: tuple[str, ...] = ("/bin/sh", "-c")
        self._has_base = False
        self._owns_setup = False

    def recipe(self) -> Recipe:
        if not self._has_base:
            self._report.warn(FILE, "", "has no FROM line")
        if self._working_directory == "/":
            self._report.error(FILE, "", "the last WORKDIR is /, which a devbox cannot write: choose a folder, as /app")
        return Recipe(
            steps=tuple(self._steps),
            working_directory=self._working_directory or WORKING_DIRECTORY,
            environment=self._environment,
            owns_setup=self._owns_setup,
        )

    def take(self, instruction: Instruction) -> None:
        keyword, rest = instruction.keyword, instruction.rest
        if keyword not in {*_HANDLED, *_NOTED}:
            if keyword == "ONBUILD":
                raise Mistake("not supported: write the line itself")
            meant = nearest(keyword, (*_HANDLED, *_NOTED))
            raise Mistake("unknown instruction" + (f"; did you mean {meant}?" if meant else ""))
        if not rest and not instruction.heredocs:
            raise Mistake("it needs something after it")
        self._owns_setup |= any("setup.sh" in text for text in (rest, *(each.text for each in instruction.heredocs)))

        match keyword:
            case "FROM":
                if self._has_base:
                    raise Mistake(
                        "more than one stage is not supported: commit what the first would build, and COPY it"
                    )
                self._has_base = True
                words = [word for word in split(rest) if not word.startswith("--")]
                image = self._expand(words[0]) if words else ""
                self._say(instruction, f"{image} is not fetched: the devbox has the system it runs on")
            case "ARG":
                for word in split(rest):
                    name, _, value = word.partition("=")
                    self._arguments[name] = self._expand(value)
            case "ENV":
                self._environment |= {name: self._expand(value) for name, value in _pairs(rest)}
            case "WORKDIR":
                path = self._absolute(self._expand(rest))
                if path != "/":
                    _refuse_system(path)
                    self._steps.append(Folder(line=instruction.line, path=path))
                self._working_directory = path
            case "COPY" | "ADD":
                self._copy(instruction)
            case "RUN":
                self._run(instruction)
            case "USER":
                if (user := self._expand(rest)) not in _USERS:
                    raise Mistake(f"{user}: a devbox has one ordinary user (1000); leave the line out")
                self._say(instruction, "everything runs as one ordinary user (1000)")
            case "SHELL":
                if not (shell := _json(rest)):
                    raise Mistake('expected ["program", "argument", …]')
                self._shell = tuple(shell)
            case _:
                self._say(instruction, _NOTED[keyword])

    def _say(self, instruction: Instruction, message: str) -> None:
        self._report.note(FILE, f"line {instruction.line}", f"{instruction.keyword}: {message}")

    @property
    def _variables(self) -> dict[str, str]:
        return {"PATH": INHERITED_PATH, **self._arguments, **self._environment}

    def _expand(self, word: str) -> str:
        return expand(word, self._variables)

    def _absolute(self, path: str) -> str:
        whole = posixpath.normpath(posixpath.join(self._working_directory or WORKING_DIRECTORY, path))
        return "/" + whole.lstrip("/")

    def _copy(self, instruction: Instruction) -> None:
        flags, rest = _flags(instruction.rest)
        mode = self._copy_mode(instruction, flags)
        plain = without_heredocs(rest) if instruction.heredocs else rest
        words = _json(plain) or split(plain)
        paths = [self._expand(word) for word in words]
        texts = tuple(
            (each.name, each.text if each.is_quoted else expand(each.text, self._variables, is_quoted_text=True))
            for each in instruction.heredocs
        )
        if len(paths) + len(texts) < 2 or not paths:
            raise Mistake("expected a source and a target")
        sources, last = tuple(paths[:-1]), paths[-1]
        for source in sources:
            if _REMOTE.search(source):
                raise Mistake(f"{source}: there is no network; commit the file and copy it from here")
            if ".." in source.split("/"):
                raise Mistake(f"{source}: leaves the folder environment/")
            if instruction.keyword == "ADD" and _ARCHIVE.search(source):
                raise Mistake(f"{source}: archives are not unpacked; COPY it and RUN tar -xf")
        is_folder = last.endswith("/") or posixpath.basename(last) in {".", ".."}
        if len(sources) + len(texts) > 1 and not is_folder:
            raise Mistake(f"with several sources the target must be a folder and end with /: {last}/")
        target = self._absolute(last)
        _refuse_system(target)
        self._steps.append(
            Copy(
                line=instruction.line,
                text=f"{instruction.keyword} {instruction.rest}",
                sources=sources,
                target=target,
                is_folder=is_folder,
                mode=mode,
                texts=texts,
            )
        )

    def _copy_mode(self, instruction: Instruction, flags: Mapping[str, str]) -> int | None:
        for name, value in flags.items():
            if name == "from":
                raise Mistake(f"--from={value} is not supported: commit the file and copy it from here")
            if name not in {"chown", "chmod", "link"}:
                raise Mistake(f"--{name} is not supported")
        if "chown" in flags:
            self._say(instruction, "--chown is ignored: all files belong to the one user")
        mode = flags.get("chmod")
        if mode is not None and not re.fullmatch(r"[0-7]{3,4}", mode):
            raise Mistake(f"--chmod={mode}: expected an octal number such as 755")
        return None if mode is None else int(mode, 8)

    def _run(self, instruction: Instruction) -> None:
        flags, rest = _flags(instruction.rest)
        for name, value in flags.items():
            raise Mistake(f"--{name}={value} is not supported: leave it out (commands run without network or mounts)")
        texts, exact, script = instruction.heredocs, None, rest
        if not texts:
            exact = _json(rest)
            script = rest if exact is None else shlex.join(exact)
        elif without_heredocs(rest):
            script = f"{rest}\n" + "".join(f"{each.text}{each.name}\n" for each in texts)
        elif len(texts) > 1:
            raise Mistake("more than one here-document needs a command")
        elif (script := texts[0].text).startswith("#!"):
            raise Mistake("a here-document that opens with #! is not supported: name its program, RUN python3 <<EOF")
        refuse_installs(script)
        self._steps.append(
            Run(
                line=instruction.line,
                text=f"RUN {rest}",
                argv=tuple(exact) if exact is not None else (*self._shell, script),
                cwd=self._working_directory or WORKING_DIRECTORY,
                environment={**self._arguments, **self._environment},
            )
        )


def _pairs(rest: str) -> list[tuple[str, str]]:
    """Return the names and values of an ENV in either of its forms. Raises Mistake."""
    words = split(rest)
    if "=" not in words[0]:
        name, _, value = rest.partition(" ")
        if not value.strip():
            raise Mistake(f"{name} needs a value: ENV {name}=value")
        return [(name, value.strip())]
    if wrong := [word for word in words if "=" not in word]:
        raise Mistake(f"expected NAME=value, got {wrong[0]}")
    return [(word.partition("=")[0], word.partition("=")[2]) for word in words]


def _flags(rest: str) -> tuple[dict[str, str], str]:
    """Return the flags at the start of an instruction, and the text that follows them."""
    flags = {}
    while found := _FLAG.match(rest):
        flags[found[1]] = found[2] or ""
        rest = rest[found.end() :]
    return flags, rest


def _json(rest: str) -> list[str] | None:
    """Return the words of an instruction in JSON form; None if it is not in that form."""
    try:
        words = orjson.loads(rest) if rest.startswith("[") else None
    except orjson.JSONDecodeError:
        return None
    return words if isinstance(words, list) and words and all(isinstance(word, str) for word in words) else None


def _refuse_system(path: str) -> None:
    top = path.split("/")[1]
    if top in SYSTEM:
        raise Mistake(f"{path}: /{top} is the system's, which is read-only in a devbox; use /app, /opt or /home/user")


def refuse_installs(script: str) -> None:
    """Raises Mistake for a script that would install software, naming the program and what to do instead.

    Its simple commands are told apart by their words alone, as far as that is possible without running it.
    """
    lexer = shlex.shlex(script, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.commenters = " \t\r", ""
    commands: list[list[str]] = [[]]
    with suppress(ValueError):  # a quote that is not closed
        for token in lexer:
            if token and all(char in "();|&\n" for char in token):
                commands.append([])
            elif commands[-1] or not (token in _PREFIXES or re.match(r"-|[A-Za-z_]\w*=", token)):
                commands[-1].append(token)

    for words in filter(None, commands):
        name, arguments = posixpath.basename(words[0]), words[1:]
        if name in _MANAGERS:
            raise Mistake(
                f"{name} needs root and the network, and a devbox has neither; leave the line out if this machine "
                "has the program, or commit the files and COPY them to /app or /opt"
            )
        if name.startswith("python") and arguments[:2] == ["-m", "pip"]:
            name, arguments = "pip", arguments[2:]
        if name == "uv" and arguments[:1] == ["pip"]:
            name, arguments = "pip", arguments[1:]
        if name in _INSTALLERS and "install" in arguments and "--no-index" not in arguments:
            raise Mistake(
                "pip install needs the network, and there is none; commit wheels, COPY them, and use "
                "pip install --no-index --find-links FOLDER --target /app/lib"
            )
