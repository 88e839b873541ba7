"""A Dockerfile as steps this service can take: folders, copies, and commands without root or network.

There is no container engine here and no image is fetched: a devbox is this machine's system with folders of its own.
What a line cannot mean under that is refused by its number, all such lines at once, rather than skipped: a task whose
environment is nearly right scores agents on what is missing.
"""

import posixpath
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

from orchestrator.service.diagnostics import Report, nearest
from orchestrator.service.environments.dockerfile_installs import refuse_installs
from orchestrator.service.environments.dockerlines import Instruction, Lines, Mistake, expand, split, without_heredocs
from orchestrator.service.sandbox.folders import SYSTEM

FILE: Final = "environment/Dockerfile"
WORKING_DIRECTORY: Final = "/app"
INHERITED_PATH: Final = "\0PATH\0"
"""Stands in values for $PATH, which only a box of the provider knows."""

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
    """What a Dockerfile comes to. `owns_setup` says that it handles a file setup.sh itself."""

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
        self._handlers: dict[str, Callable[[Instruction], None]] = {
            "FROM": self._from,
            "ARG": self._arg,
            "ENV": self._env,
            "WORKDIR": self._workdir,
            "COPY": self._copy,
            "ADD": self._copy,
            "RUN": self._run,
            "USER": self._user,
            "SHELL": self._set_shell,
            **dict.fromkeys(_NOTED, self._note),
        }

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
        handler = self._handlers.get(instruction.keyword)
        if handler is None:
            if instruction.keyword == "ONBUILD":
                raise Mistake("not supported: write the line itself")
            meant = nearest(instruction.keyword, self._handlers)
            raise Mistake("unknown instruction" + (f"; did you mean {meant}?" if meant else ""))
        if not instruction.rest and not instruction.heredocs:
            raise Mistake("it needs something after it")
        self._owns_setup |= any("setup.sh" in text for text in (instruction.rest, *_texts(instruction)))
        handler(instruction)

    def _say(self, instruction: Instruction, message: str) -> None:
        self._report.note(FILE, f"line {instruction.line}", f"{instruction.keyword}: {message}")

    def _note(self, instruction: Instruction) -> None:
        self._say(instruction, _NOTED[instruction.keyword])

    @property
    def _variables(self) -> dict[str, str]:
        return {"PATH": INHERITED_PATH, **self._arguments, **self._environment}

    def _expand(self, word: str) -> str:
        return expand(word, self._variables)

    def _from(self, instruction: Instruction) -> None:
        if self._has_base:
            raise Mistake("more than one stage is not supported: commit what the first would build, and COPY it")
        self._has_base = True
        words = [word for word in split(instruction.rest) if not word.startswith("--")]
        image = self._expand(words[0]) if words else ""
        self._say(instruction, f"{image} is not fetched: the devbox has the system it runs on")

    def _arg(self, instruction: Instruction) -> None:
        for word in split(instruction.rest):
            name, _, value = word.partition("=")
            self._arguments[name] = self._expand(value)

    def _env(self, instruction: Instruction) -> None:
        words = split(instruction.rest)
        if "=" not in words[0]:
            name, _, value = instruction.rest.partition(" ")
            pairs = [(name, value.strip())]
            if not value.strip():
                raise Mistake(f"{name} needs a value: ENV {name}=value")
        else:
            wrong = [word for word in words if "=" not in word]
            if wrong:
                raise Mistake(f"expected NAME=value, got {wrong[0]}")
            pairs = [(word.partition("=")[0], word.partition("=")[2]) for word in words]
        self._environment |= {name: self._expand(value) for name, value in pairs}

    def _workdir(self, instruction: Instruction) -> None:
        path = self._absolute(self._expand(instruction.rest))
        if path != "/":
            _refuse_system(path)
            self._steps.append(Folder(line=instruction.line, path=path))
        self._working_directory = path

    def _absolute(self, path: str) -> str:
        whole = posixpath.normpath(posixpath.join(self._working_directory or WORKING_DIRECTORY, path))
        return "/" + whole.lstrip("/")

    def _user(self, instruction: Instruction) -> None:
        name = self._expand(instruction.rest)
        if name not in _USERS:
            raise Mistake(f"{name}: a devbox has one ordinary user (1000); leave the line out")
        self._say(instruction, "everything runs as one ordinary user (1000)")

    def _set_shell(self, instruction: Instruction) -> None:
        shell = _json(instruction.rest)
        if not shell:
            raise Mistake('expected ["program", "argument", …]')
        self._shell = tuple(shell)

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
            _refuse_source(instruction.keyword, source)
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
        if "chmod" not in flags:
            return None
        if not re.fullmatch(r"[0-7]{3,4}", flags["chmod"]):
            raise Mistake(f"--chmod={flags['chmod']}: expected an octal number such as 755")
        return int(flags["chmod"], 8)

    def _run(self, instruction: Instruction) -> None:
        flags, rest = _flags(instruction.rest)
        for name, value in flags.items():
            raise Mistake(f"--{name}={value} is not supported: leave it out (commands run without network or mounts)")
        exact = None if instruction.heredocs else _json(rest)
        script = _script(rest, instruction) if exact is None else shlex.join(exact)
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


def _texts(instruction: Instruction) -> list[str]:
    return [each.text for each in instruction.heredocs]


def _flags(rest: str) -> tuple[dict[str, str], str]:
    """Flags at the start of an instruction, and what follows them."""
    flags = {}
    while found := _FLAG.match(rest):
        flags[found[1]] = found[2] or ""
        rest = rest[found.end() :]
    return flags, rest


def _json(rest: str) -> list[str] | None:
    """The words of an instruction in JSON form; None if it is not in that form."""
    try:
        words = orjson.loads(rest) if rest.startswith("[") else None
    except orjson.JSONDecodeError:
        return None
    return words if isinstance(words, list) and words and all(isinstance(word, str) for word in words) else None


def _script(rest: str, instruction: Instruction) -> str:
    if not instruction.heredocs:
        return rest
    if not without_heredocs(rest):
        if len(instruction.heredocs) > 1:
            raise Mistake("more than one here-document needs a command")
        if instruction.heredocs[0].text.startswith("#!"):
            raise Mistake("a here-document that opens with #! is not supported: name its program, RUN python3 <<EOF")
        return instruction.heredocs[0].text
    return f"{rest}\n" + "".join(f"{each.text}{each.name}\n" for each in instruction.heredocs)


def _refuse_system(path: str) -> None:
    top = path.split("/")[1]
    if top in SYSTEM:
        raise Mistake(f"{path}: /{top} is the system's, which is read-only in a devbox; use /app, /opt or /home/user")


def _refuse_source(keyword: str, source: str) -> None:
    if _REMOTE.search(source):
        raise Mistake(f"{source}: there is no network; commit the file and copy it from here")
    if ".." in source.split("/"):
        raise Mistake(f"{source}: leaves the folder environment/")
    if keyword == "ADD" and _ARCHIVE.search(source):
        raise Mistake(f"{source}: archives are not unpacked; COPY it and RUN tar -xf")
