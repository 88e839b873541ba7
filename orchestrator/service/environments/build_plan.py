"""A Dockerfile as a plan: the stages that a target needs, their steps with all variables filled in, and their keys.

Its secret: the meaning of instructions, which is BuildKit's, for people write them for it (its `dockerfile2llb`, and
the Dockerfile reference). The text is taken apart by a port of BuildKit's own reader. Nothing is run or fetched here.

What a base image says of itself counts too: its ENV, WORKDIR, USER and SHELL, and its ONBUILD lines. It is given by the
caller, once it is there: a plan made before names the images that are needed, a plan made after is exact.

Every mistake in the stages that are needed is found at once, and named by its line.
"""

import posixpath
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast, get_args

from e2b_dockerfile_utils import (
    DockerfileHeredoc,
    DockerfileInstruction,
    chomp_heredoc_content,
    parse_heredoc,
)

from orchestrator.service.content import complaint, decoded, read_file
from orchestrator.service.diagnostics import clipped, hint
from orchestrator.service.environments.build_context import BuildContext, is_pattern, normal
from orchestrator.service.environments.build_outline import (
    DockerfileError,
    Draft,
    Mistakes,
    Outline,
    accepted,
    arguments_of,
    fields_of_mount,
    flags_of,
    parse,
    parse_trigger,
    rest_of,
    truth,
)
from orchestrator.service.environments.build_steps import (
    DEFAULT_PATH,
    DEFAULT_SHELL,
    BaseImage,
    BuildLayer,
    BuildMount,
    BuildPlan,
    BuildStage,
    BuildStep,
    CopySource,
    CopyStep,
    FetchStep,
    FolderStep,
    FromContext,
    FromImage,
    FromNothing,
    FromStage,
    Keys,
    MountKind,
    Network,
    Origin,
    RunStep,
    Sharing,
    StageConfig,
    TextFile,
)
from orchestrator.service.sandbox.prepared import Healthcheck

#: Bytes of a Dockerfile, or of a .dockerignore.
MAX_TEXT_BYTES: Final = 1 << 20
#: Files that sources are looked for among, those of all sources of a stage together: some ten seconds.
MAX_LOOKED_AT: Final = 20_000_000
_HEALTH_INTERVAL_S: Final = 30.0

_MAY_BE_EMPTY: Final = frozenset({"CMD", "ENTRYPOINT", "ONBUILD"})

_MOUNT_WORDS: Final = (
    *("type", "target", "source", "from", "readonly", "readwrite", "id", "sharing"),
    *("required", "env", "size", "mode", "uid", "gid"),
)
#: Keys of --mount that only some of its types have.
_ONLY_FOR: Final[Mapping[str, tuple[MountKind, ...]]] = {
    "from": ("bind", "cache"),
    "sharing": ("cache",),
    "required": ("secret",),
    "env": ("secret",),
    "size": ("tmpfs",),
    "mode": ("cache", "secret"),
    "uid": ("cache", "secret"),
    "gid": ("cache", "secret"),
}
#: Where a here-document that opens with #! is seen by the command that it is.
SCRIPTS: Final = "/run/scripts"

_OCTAL_MODE: Final = re.compile(r"[0-7]{1,4}|0[0-7]{4}")
_SYMBOLIC_MODE: Final = re.compile(r"[ugoa]*[-+=][rwxXstugo]*(?:,[ugoa]*[-+=][rwxXstugo]*)*")
_PORT: Final = re.compile(r"([\d.-]*:)*\d{1,5}(-\d{1,5})?(/(tcp|udp|sctp))?", re.IGNORECASE)
_SIGNAL: Final = re.compile(r"\d+|(SIG)?[A-Z][A-Z0-9]*([+-]\d+)?", re.IGNORECASE)
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})(ns|us|µs|ms|s|m|h)")
_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_GIT: Final = re.compile(r"(git|ssh)://|git@|https?://[^#?]*\.git([#?]|$)")
_HTTP: Final = re.compile(r"https?://")
_CHECKSUM: Final = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_COMMIT: Final = re.compile(r"[0-9a-f]{7,64}")


def plan(
    dockerfile: Path,
    context: Path,
    *,
    platform: str,
    build_args: Mapping[str, str] | None = None,
    target: str | None = None,
    images: Mapping[str, BaseImage] | None = None,
) -> BuildPlan:
    """Read a Dockerfile and what it copies of the folder `context`. Blocking. Raises DockerfileError.

    `NAME.dockerignore` beside the Dockerfile replaces the folder's `.dockerignore`. For the rest see `plan_text`.
    """
    ignore = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    if not ignore.is_file():
        ignore = context / ".dockerignore"
    rules = _read(ignore) if ignore.is_file() else ""
    try:
        files = BuildContext.read(context, ignore=rules)
    except OSError as error:
        raise DockerfileError(context.name, [(1, complaint(error))]) from error
    except ValueError as error:
        raise DockerfileError(ignore.name, [(1, str(error))]) from None
    return plan_text(
        _read(dockerfile),
        files,
        file=dockerfile.name,
        platform=platform,
        build_args=build_args,
        target=target,
        images=images,
    )


def _read(file: Path) -> str:
    """Return the text of a file. Raises DockerfileError."""
    try:
        return decoded(read_file(file, MAX_TEXT_BYTES))
    except OSError as error:
        raise DockerfileError(file.name, [(1, complaint(error))]) from error


def plan_text(
    text: str,
    context: BuildContext,
    *,
    file: str,
    platform: str,
    build_args: Mapping[str, str] | None = None,
    target: str | None = None,
    images: Mapping[str, BaseImage] | None = None,
) -> BuildPlan:
    """Return the plan of a Dockerfile's text; `file` names it in messages. Raises DockerfileError.

    `platform` is that of the result, as in linux/amd64. `target` is the name or the number of a stage, the last one if
    it is None. `images` are what is known of images, by reference; of another one nothing is assumed but its PATH.
    """
    mistakes = Mistakes(file)
    outline = Outline(parse(text, mistakes), mistakes, platform, build_args or {}, images or {})
    keys = Keys({name: image.digest for name, image in outline.images.items()}, context.contents)
    stages: dict[int, BuildStage] = {}
    for draft in outline.needed(target):
        stage = stages[draft.number] = _StageReader(outline, draft, context, stages).read(keys, mistakes)
        keys.add_stage(stage.number, stage.key)
    mistakes.check()
    return BuildPlan(stages=tuple(stages.values()))


class _StageReader:
    """The state that one instruction of a stage leaves to the next."""

    def __init__(self, outline: Outline, draft: Draft, context: BuildContext, stages: Mapping[int, BuildStage]) -> None:
        self._outline = outline
        self._draft = draft
        self._context = context
        self._steps: list[BuildStep] = []
        self._has_command = False
        self._looked_at = 0
        config, variables = StageConfig(), {}
        match draft.base:
            case FromStage(number=number):
                config, variables = stages[number].config, dict(stages[number].variables)
            case FromImage(reference=reference) if reference in outline.images:
                config = outline.images[reference].config
        environment = {"PATH": DEFAULT_PATH, **config.environment}
        self._config = replace(config, environment=environment, on_build=())
        #: What words and commands see: ENV and ARG, of which the later counts.
        self._variables = {**variables, **environment}

    def read(self, keys: Keys, mistakes: Mistakes) -> BuildStage:
        """Take all instructions."""
        for instruction in self._draft.instructions:
            with mistakes.at(instruction):
                self._take(instruction)
        base = key = keys.of_origin(self._draft.base)
        groups: list[tuple[str, list[BuildStep]]] = []
        for step in self._steps:
            try:
                key = keys.of_step(key, step)
            except OSError as error:
                mistakes.add(step.line, f"{error.filename or 'a file of the context'} {complaint(error)}")
            is_folded = groups and not isinstance(step, RunStep) and not isinstance(groups[-1][1][-1], RunStep)
            groups[-1:] = [(key, [*groups[-1][1], step])] if is_folded else [*groups[-1:], (key, [step])]
        return BuildStage(
            number=self._draft.number,
            name=self._draft.name,
            line=self._draft.opening.start_line,
            base=self._draft.base,
            layers=tuple(BuildLayer(key=key, steps=tuple(steps)) for key, steps in groups),
            config=self._config,
            variables=self._variables,
            key=groups[-1][0] if groups else base,
        )

    def _take(self, instruction: DockerfileInstruction) -> None:
        """Take one instruction. Raises ValueError."""
        config = self._config
        if not instruction.args and instruction.name not in _MAY_BE_EMPTY:
            raise ValueError("it needs something after it")
        flags = flags_of(instruction)
        match instruction.name:
            case "ARG":
                self._declare(instruction)
            case "ENV":
                values = self._pairs(instruction)
                self._variables |= values
                self._config = replace(config, environment={**config.environment, **values})
            case "LABEL":
                self._config = replace(config, labels={**config.labels, **self._pairs(instruction)})
            case "WORKDIR":
                path = self._absolute(self._fill(instruction.args[0]))
                self._config = replace(config, working_directory=path)
                if path != "/":
                    self._steps.append(FolderStep(path=path, owner=config.user, **_place(instruction)))
            case "USER":
                self._config = replace(config, user=self._fill(instruction.args[0]))
            case "SHELL":
                if not instruction.json:
                    raise ValueError('expected ["program", "argument", …]')
                self._config = replace(config, shell=tuple(instruction.args))
            case "CMD":
                self._config, self._has_command = replace(config, command=self._program(instruction)), True
            case "ENTRYPOINT":
                command = config.command if self._has_command else None
                self._config = replace(config, entrypoint=self._program(instruction), command=command)
            case "EXPOSE":
                self._config = replace(config, ports=_joined(config.ports, self._ports(instruction)))
            case "VOLUME":
                volumes = [self._fill(word) for word in instruction.args]
                if not all(volumes):
                    raise ValueError("a path is empty: expected one such as /data")
                self._config = replace(config, volumes=_joined(config.volumes, volumes))
            case "STOPSIGNAL":
                signal = self._fill(instruction.args[0])
                if not _SIGNAL.fullmatch(signal):
                    raise ValueError(f"{signal} is no signal: expected one such as SIGTERM or 15")
                self._config = replace(config, stop_signal=signal.upper())
            case "HEALTHCHECK":
                self._config = replace(config, healthcheck=self._healthcheck(instruction, flags))
            case "ONBUILD":
                parse_trigger(rest_of(instruction))
                self._config = replace(config, on_build=(*config.on_build, rest_of(instruction)))
            case "RUN":
                self._run(instruction, flags)
            case "COPY" | "ADD":
                self._copy(instruction, flags)
            case _:  # MAINTAINER, which only says who wrote it
                pass

    def _fill(self, word: str) -> str:
        return self._outline.words.fill(word, self._variables)

    def _absolute(self, path: str) -> str:
        return f"/{normal(posixpath.join(self._config.working_directory or '/', path))}"

    def _declare(self, instruction: DockerfileInstruction) -> None:
        """Take an ARG: the build's value, else the line's own, else that of before the first FROM."""
        outline = self._outline
        for word, value in arguments_of(instruction):
            name = self._fill(word)
            if name in outline.build_args:
                self._variables[name] = outline.build_args[name]
            elif value is not None:
                self._variables[name] = self._fill(value)
            elif name in outline.arguments:
                self._variables[name] = outline.arguments[name]

    def _pairs(self, instruction: DockerfileInstruction) -> dict[str, str]:
        """Return the names and values of an ENV or LABEL. Raises ValueError."""
        names, values = instruction.args[::3], instruction.args[1::3]
        pairs = {self._fill(name): self._fill(value) for name, value in zip(names, values, strict=True)}
        if "" in pairs:
            raise ValueError("a name is empty: expected NAME=value")
        return pairs

    def _program(self, instruction: DockerfileInstruction) -> tuple[str, ...]:
        """Return what a line in either of its forms starts."""
        is_exact = instruction.json or not instruction.args
        return tuple(instruction.args) if is_exact else (*self._config.shell, *instruction.args)

    def _ports(self, instruction: DockerfileInstruction) -> list[str]:
        ports = [word for text in instruction.args for word in self._fill(text).split()]
        for port in ports:
            if not _PORT.fullmatch(port):
                raise ValueError(f"{port} is no port: expected one such as 80, 53/udp or 8000-8010")
        inside = [port.lower().rpartition(":")[2] for port in ports]
        return [port if "/" in port else f"{port}/tcp" for port in inside]

    def _healthcheck(self, instruction: DockerfileInstruction, flags: Mapping[str, list[str]]) -> Healthcheck | None:
        """Return what a HEALTHCHECK asks for, None for NONE. Raises ValueError."""
        kind, *words = instruction.args
        if kind.upper() == "NONE" and not words:
            return None
        if kind.upper() != "CMD" or not words:
            raise ValueError("expected HEALTHCHECK CMD COMMAND, or HEALTHCHECK NONE")
        given = {name: values[0] for name, values in flags.items()}
        retries = given.get("retries", "0")
        if not retries.isdecimal():
            raise ValueError(f"--retries={retries}: expected a whole number")
        is_plain = not instruction.json and self._config.shell == DEFAULT_SHELL
        usual = Healthcheck(command="")
        return Healthcheck(
            command=words[0] if is_plain else shlex.join(words if instruction.json else (*self._config.shell, *words)),
            interval=_seconds(given, "interval") or _HEALTH_INTERVAL_S,
            timeout=_seconds(given, "timeout") or usual.timeout,
            start_period=_seconds(given, "start-period"),
            start_interval=_seconds(given, "start-interval") or usual.start_interval,
            retries=int(retries) or usual.retries,
        )

    def _run(self, instruction: DockerfileInstruction, flags: Mapping[str, list[str]]) -> None:
        files: tuple[TextFile, ...] = ()
        argv = self._program(instruction)
        if not all(argv[:1]):
            raise ValueError("the program's name is empty")
        if instruction.heredocs:
            script = instruction.args[0]
            if parse_heredoc(script) is None:  # a command with here-documents, which the shell reads itself
                script += "".join(f"\n{each.content}{each.name}" for each in instruction.heredocs)
            else:
                script = _body(instruction.heredocs[0])
                if script.startswith("#!"):
                    files = (TextFile(name=f"{SCRIPTS}/{instruction.heredocs[0].name}", text=script),)
                    script = files[0].name
            argv = (*self._config.shell, script)
        network = flags.get("network", ["default"])[0]
        self._steps.append(
            RunStep(
                argv=argv,
                cwd=self._config.working_directory or "/",
                user=self._config.user,
                environment=dict(self._variables),
                files=files,
                mounts=tuple(self._mount(text) for text in flags.get("mount", ())),
                network=cast("Network", _choice(network, get_args(Network), "--network")),
                **_place(instruction),
            )
        )

    def _mount(self, text: str) -> BuildMount:
        """Read the value of --mount. Raises ValueError."""
        given = {key: value if key == "from" else self._fill(value) for key, value in fields_of_mount(text)}
        what = f"--mount={text}"
        for key in given:
            if key not in _MOUNT_WORDS:
                raise ValueError(f"{what}: unknown key {key}; {hint(key, _MOUNT_WORDS, accepted(_MOUNT_WORDS))}")
        kind = cast("MountKind", _choice(given.get("type", "bind").lower(), get_args(MountKind), f"{what}: type"))
        if apart := [key for key in given if key in _ONLY_FOR and kind not in _ONLY_FOR[key]]:
            raise ValueError(f"{what}: {apart[0]} is not for type={kind}: leave it out")
        target, name = self._target_of_mount(kind, given, what)
        origin: Origin = FromContext() if kind == "bind" else FromNothing()
        if "from" in given:
            origin = self._outline.origin(given["from"], self._draft.number)
        source = CopySource(path="" if kind == "secret" else f"/{normal(given.get('source', ''))}", is_folder=True)
        if isinstance(origin, FromContext):
            source = self._select(given.get("source", ""))
        is_writable = truth(given.get("readwrite", str(kind in {"cache", "tmpfs"})), what)
        return BuildMount(
            kind=kind,
            target=target,
            origin=origin,
            source=source,
            is_read_only=truth(given["readonly"], what) if "readonly" in given else not is_writable,
            is_required=truth(given.get("required", "false"), what),
            id=name,
            variable=given.get("env", ""),
            sharing=cast(
                "Sharing", _choice(given.get("sharing", "shared").lower(), get_args(Sharing), f"{what}: sharing")
            ),
            size_bytes=_size_bytes(given["size"], what) if "size" in given else None,
            mode=_number(given, "mode", 8, what),
            uid=_number(given, "uid", 10, what),
            gid=_number(given, "gid", 10, what),
        )

    def _target_of_mount(self, kind: MountKind, given: Mapping[str, str], what: str) -> tuple[str, str]:
        """Return where a mount is seen, "" for a secret that is a variable only, and its id. Raises ValueError."""
        target, name = given.get("target", ""), given.get("id", "")
        if kind == "secret":
            name = name or given.get("source", "") or posixpath.basename(target)
            if not name:
                raise ValueError(f"{what}: expected id=NAME, the name of the secret")
            target = target or ("" if "env" in given else f"/run/secrets/{posixpath.basename(name)}")
        elif not target:
            raise ValueError(f"{what}: expected target=FOLDER")
        target = self._absolute(target) if target else ""
        if target == "/":
            raise ValueError(f"{what}: target: expected a folder below /")
        return target, name or (target if kind == "cache" else "")

    def _copy(self, instruction: DockerfileInstruction, flags: Mapping[str, list[str]]) -> None:
        """Take a COPY or an ADD. Raises ValueError."""
        if len(instruction.args) < 2:
            raise ValueError(f"expected a source and a target, as in {instruction.name} a.txt /app/")
        sources, texts = self._sources(instruction)
        addresses = [source for source in sources if _HTTP.match(source) or _GIT.match(source)]
        if addresses and instruction.name == "COPY":
            raise ValueError(f"{addresses[0]} is an address: use ADD for it")

        target = self._target(self._fill(instruction.args[-1]), is_folder=len(texts) + len(sources) > 1)
        common = self._common(instruction, flags)
        checksum = self._checksum(flags, sources, addresses)
        for url in addresses:
            is_git, keeps = _GIT.match(url) is not None, _is_set(flags, "keep-git-dir")
            fetch = FetchStep(
                url=url, checksum=checksum, target=target, is_git=is_git, keeps_git_folder=keeps, **common
            )
            self._steps.append(replace(fetch, is_unpacking=_is_set(flags, "unpack")))
        local = [source for source in sources if source not in addresses]
        if not local and not texts:
            return
        keeps_parents, exclude = _is_set(flags, "parents"), flags.get("exclude", ())
        origin: Origin = FromContext()
        if "from" in flags:
            origin = self._outline.origin(flags["from"][0], self._draft.number)
            found = [CopySource(path=each if keeps_parents else f"/{normal(each)}") for each in local]
        else:
            found = [self._select(each, exclude=exclude, keeps_parents=keeps_parents) for each in local]
        is_folder = any(is_pattern(each.path) and len(each.files) > 1 for each in found)
        self._steps.append(
            CopyStep(
                origin=origin,
                sources=tuple(found),
                target=self._target(target, is_folder=is_folder or target.endswith("/")),
                texts=tuple(texts),
                keeps_parents=keeps_parents,
                is_unpacking=_is_set(flags, "unpack") if "unpack" in flags else instruction.name == "ADD",
                **common,
            )
        )

    def _sources(self, instruction: DockerfileInstruction) -> tuple[list[str], list[TextFile]]:
        """Return the sources of a copy: names or addresses, and here-documents. Raises ValueError."""
        heredocs = {each.name: each for each in instruction.heredocs}
        sources, texts = [], []
        for word in instruction.args[:-1]:
            named = parse_heredoc(word) if heredocs else None
            if named is not None and named.name in heredocs:
                heredoc = heredocs[named.name]
                text = _body(heredoc)
                if heredoc.expand:
                    text = self._outline.words.fill_text(text, self._variables)
                texts.append(TextFile(name=heredoc.name, text=text))
            else:
                sources.append(self._fill(word))
        return sources, texts

    def _common(self, instruction: DockerfileInstruction, flags: Mapping[str, list[str]]) -> Any:
        """Return the fields that all copies have. Raises ValueError."""
        owner, mode = (self._fill(flags.get(name, [""])[0]) for name in ("chown", "chmod"))
        if mode and not _OCTAL_MODE.fullmatch(mode) and not _SYMBOLIC_MODE.fullmatch(mode):
            raise ValueError(f"--chmod={mode}: expected an octal number such as 755, or a change such as u+x,go-w")
        exclude = tuple(flags.get("exclude", ()))
        return {
            "owner": owner,
            "mode": mode,
            "exclude": exclude,
            "is_linked": _is_set(flags, "link"),
            **_place(instruction),
        }

    def _checksum(self, flags: Mapping[str, list[str]], sources: Sequence[str], addresses: Sequence[str]) -> str:
        """Return the value of --checksum, which is for one address. Raises ValueError."""
        checksum = self._fill(flags.get("checksum", [""])[0])
        if checksum and (len(sources) != 1 or not addresses):
            raise ValueError("--checksum is for one source that is an address: leave it out")
        if checksum and not (_COMMIT if _GIT.match(addresses[0]) else _CHECKSUM).fullmatch(checksum):
            expected = "expected sha256: and 64 digits, or a commit of a repository"
            raise ValueError(f"--checksum={clipped(checksum)}: {expected}")
        return checksum

    def _select(self, source: str, *, exclude: Sequence[str] = (), keeps_parents: bool = False) -> CopySource:
        """Return what a source means in the context. Raises ValueError."""
        self._looked_at += len(self._context)
        if self._looked_at > MAX_LOOKED_AT:
            raise ValueError("too many sources for so many files: copy folders instead, or use .dockerignore")
        return self._context.select(source, exclude=exclude, keeps_parents=keeps_parents)

    def _target(self, path: str, *, is_folder: bool) -> str:
        """Return the target of a copy, with a slash at its end if it is a folder whatever is there."""
        is_folder = is_folder or posixpath.basename(path) in {"", ".", ".."}
        whole = self._absolute(path)
        return f"{whole.rstrip('/')}/" if is_folder else whole


def _place(instruction: DockerfileInstruction) -> Any:
    """Return the fields that every step has."""
    return {"line": instruction.start_line, "text": instruction.original.strip()}


def _body(heredoc: DockerfileHeredoc) -> str:
    return chomp_heredoc_content(heredoc.content) if heredoc.chomp else heredoc.content


def _joined(before: tuple[str, ...], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*before, *more)))


def _is_set(flags: Mapping[str, list[str]], name: str) -> bool:
    return flags.get(name) == ["true"]


def _choice(word: str, choices: Collection[str], what: str) -> str:
    """Return a word that is one of the choices. Raises ValueError."""
    if word not in choices:
        raise ValueError(f"{what}={clipped(word)}: {accepted(choices)}")
    return word


def _number(given: Mapping[str, str], name: str, base: int, what: str) -> int | None:
    if name not in given:
        return None
    if not re.fullmatch("[0-7]{1,5}" if base == 8 else "[0-9]{1,10}", given[name]):
        kind = "an octal number such as 0755" if base == 8 else "a number"
        raise ValueError(f"{what}: {name}: expected {kind}")
    return int(given[name], base)


def _size_bytes(text: str, what: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{what}: size: expected a size such as 64m")
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2].lower() or " "))


def _seconds(given: Mapping[str, str], name: str) -> float:
    """Return a duration in seconds, 0 if it is not given. Raises ValueError."""
    text = given.get(name, "0s")
    if text != "0" and not re.fullmatch(f"(?:{_DURATION.pattern})+", text):
        raise ValueError(f"--{name}={clipped(text)}: expected a duration such as 30s or 1m30s")
    return sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION.findall(text))
