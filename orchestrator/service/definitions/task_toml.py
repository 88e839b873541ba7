"""`task.toml`: Harbor's keys and ours, read into one record, every mistake told by its key.

A key we do not know is Harbor's, present or future, and only warned of: a foreign task must stay readable. One that
nearly is a key we do know is a mistake, because a time limit that silently is not one costs a night.
Source of the keys: Harbor's task format, schema 1.0 to 1.4; `[[scorers]]` is ours.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from orchestrator.service.definitions.scoring_plan import Artifact, Collect, Mode
from orchestrator.service.definitions.self_extracting import TEMPLATE
from orchestrator.service.definitions.toml_file import TomlError, parse
from orchestrator.service.diagnostics import Report, nearest, shown
from orchestrator.service.sandbox.egress.addresses import address_of, is_global
from orchestrator.service.sandbox.egress.rules import Rules, check_hosts, is_address
from orchestrator.service.sandbox.prepared import Healthcheck

FILE: Final = "task.toml"
Table = Mapping[str, Any]
T = TypeVar("T")

_PHASE: Final = {"timeout_sec", "user", "network_mode", "allowed_hosts"}
_KNOWN: Final[Mapping[str, Collection[str]]] = {
    "": {
        *("version", "schema_version", "source", "task", "metadata", "agent", "verifier", "environment", "solution"),
        *("scorers", "steps", "multi_step_reward_strategy", "multi_step_reward_mode", "artifacts"),
    },
    "agent": _PHASE,
    "verifier": _PHASE | {"env", "environment_mode", "environment", "collect"},
    "solution": {"env"},
    "environment": {
        *("build_timeout_sec", "docker_image", "os", "workdir", "env", "cpus", "memory_mb", "memory", "storage_mb"),
        *("storage", "gpus", "gpu_types", "tpu", "allow_internet", "network_mode", "allowed_hosts", "mcp_servers"),
        *("skills_dir", "healthcheck"),
    },
}
#: What is asked for in vain and changes no score; `_Reader._refusals` has what would.
_NOTED: Final = {
    "agent.user": "everything runs as one user",
    "verifier.user": "everything runs as one user",
    "environment.skills_dir": "agents are not told of it",
}
#: What a verifier's environment may say for itself, or is judged elsewhere.
_OF_VERIFIERS: Final = {
    *("cpus", "memory_mb", "memory", "storage_mb", "storage", "build_timeout_sec"),
    *("docker_image", "network_mode", "allowed_hosts"),
}
_SIZE: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT])(?:i?B)?\s*", re.IGNORECASE)
_MEGABYTES: Final = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}
#: Seconds, cores or mebibytes: what is more means nothing, and overflows.
_MOST: Final = 1_000_000_000
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a task.toml says. Times are seconds, sizes mebibytes; None is what it does not say.

    `variables` reach the devbox; `required` must come with the run. `verifier_env` and `solution_env` may hold
    templates (`${NAME}`), which are filled in where the scripts run. `hosts` may be reached though `network` is off, by
    devboxes with walls. `refusals` are (key, why) of what is asked for, cannot be had here and would change the score;
    `notes` are what is asked for in vain and changes no score.
    """

    difficulty: str | None = None
    category: str | None = None
    tags: tuple[str, ...] = ()
    agent_timeout: float | None = None
    verifier_timeout: float = 600.0
    build_timeout: float = 600.0
    cpus: float | None = None
    memory_mb: float | None = None
    storage_mb: float | None = None
    network: bool = False
    hosts: tuple[str, ...] = ()
    workdir: str | None = None
    healthcheck: Healthcheck | None = None
    docker_image: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    verifier_env: Mapping[str, str] = field(default_factory=dict)
    solution_env: Mapping[str, str] = field(default_factory=dict)
    scorers: tuple[Table, ...] = ()
    scoring_mode: Mode = "shared"
    artifacts: tuple[Artifact, ...] = ()
    collect: tuple[Collect, ...] = ()
    verifier_image: str | None = None
    refusals: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    has_steps: bool = False


def read_task(data: bytes, report: Report) -> Task:
    """Read the content of a task.toml; mistakes go to `report`, and what they spoil has its default."""
    try:
        document = parse(data)
    except TomlError as error:
        report.error(FILE, error.key, str(error))
        return Task()
    return _Reader(document, report).task()


class _Reader:
    """One document and where its mistakes go. Keys are dotted: `environment.cpus`."""

    def __init__(self, document: Table, report: Report) -> None:
        self._document = document
        self._report = report
        self._required: dict[str, None] = {}
        self._notes: list[str] = []

    def task(self) -> Task:
        self._judge_keys()
        variables = self._variables()
        return Task(
            difficulty=self._label("metadata.difficulty"),
            category=self._label("metadata.category"),
            tags=self._tags(),
            agent_timeout=self._number("agent.timeout_sec"),
            verifier_timeout=self._number("verifier.timeout_sec") or 600.0,
            build_timeout=self._number("environment.build_timeout_sec") or 600.0,
            cpus=self._number("environment.cpus"),
            memory_mb=self._size("environment.memory_mb", "environment.memory"),
            storage_mb=self._size("environment.storage_mb", "environment.storage"),
            network=self._network(),
            hosts=self._hosts(),
            workdir=self._workdir(),
            healthcheck=self._healthcheck(),
            docker_image=self._value("environment.docker_image", str, "a text"),
            variables=variables,
            verifier_env=self._script_env("verifier.env"),
            solution_env=self._script_env("solution.env"),
            required=tuple(self._required),
            scorers=self._scorers(),
            scoring_mode=self._scoring_mode(),
            artifacts=self._artifacts(),
            collect=self._collect(),
            verifier_image=self._value("verifier.environment.docker_image", str, "a text"),
            refusals=tuple(self._refusals()),
            notes=tuple(self._notes),
            has_steps=bool(self._get("steps")),
        )

    def _get(self, key: str) -> Any:
        value: Any = self._document
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def _value(self, key: str, kind: type[T], expected: str) -> T | None:
        value = self._get(key)
        if value is None or isinstance(value, kind):
            return value
        self._report.error(FILE, key, f"expected {expected}, got {shown(value)}")
        return None

    def _number(self, key: str) -> float | None:
        return self._above_zero(key, self._get(key))

    def _above_zero(self, key: str, value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value <= 0:
            self._report.error(FILE, key, f"expected a number above 0, got {shown(value)}")
            return None
        if value > _MOST:
            self._report.error(FILE, key, f"expected a number up to {_MOST:,}, got {shown(value)}")
            return None
        return float(value)

    def _size(self, key: str, older: str) -> float | None:
        """Mebibytes, from a number or from the older spelling `"2G"`."""
        text = self._get(older)
        if text is None or self._get(key) is not None:
            return self._number(key)
        found = _SIZE.fullmatch(text) if isinstance(text, str) else None
        size = float(found[1]) * _MEGABYTES[found[2].upper()] if found else 0
        if not 0 < size <= _MOST:
            self._report.error(FILE, older, f'expected a size such as "512M" or "2G", got {shown(text)}')
            return None
        return size

    def _label(self, key: str) -> str | None:
        """Metadata is free in Harbor: what is not a text is shown as one."""
        value = self._get(key)
        return None if value is None else str(value)

    def _tags(self) -> tuple[str, ...]:
        value = self._get("metadata.tags")
        return tuple(map(str, value)) if isinstance(value, list) else ()

    def _network(self) -> bool:
        mode = self._value("environment.network_mode", str, "a text")
        allowed = self._value("environment.allow_internet", bool, "true or false")
        if mode in {"public", "no-network", "allowlist"}:
            return mode == "public"
        if mode is None and allowed is None and self._get("environment.allowed_hosts") is None:
            self._report.warn(FILE, "environment.allow_internet", "is not given: the devbox has no network")
        elif mode is not None:
            self._report.error(
                FILE, "environment.network_mode", f'expected "public", "no-network" or "allowlist", got {shown(mode)}'
            )
        return bool(allowed)

    def _hosts(self) -> tuple[str, ...]:
        key = "environment.allowed_hosts"
        hosts = [str(host) for host in self._value(key, list, "a list of hosts") or ()]
        try:
            check_hosts(hosts)
        except ValueError as error:
            self._report.error(FILE, key, str(error))
            return ()
        named = [address_of(rule.host) for rule in Rules.parse(hosts).all if is_address(rule.host)]
        for address in named:
            if not (address.is_loopback or is_global(address)):
                why = "is no public address: a neighbour of whoever runs this can be named in an agent's file only"
                self._report.error(FILE, key, f"{address} {why}")
        return () if self._get("environment.network_mode") == "no-network" else tuple(hosts)

    def _workdir(self) -> str | None:
        key = "environment.workdir"
        path = self._value(key, str, "a text")
        if path is not None and (not path.startswith("/") or ".." in path.split("/") or path.strip("/") == ""):
            self._report.error(FILE, key, f"expected an absolute path below /, got {shown(path)}")
            return None
        return path

    def _healthcheck(self) -> Healthcheck | None:
        key = "environment.healthcheck"
        table = self._value(key, dict, "a table with a command")
        if table is None:
            return None
        usual = Healthcheck(command=self._value(f"{key}.command", str, "a shell command") or "")
        if not usual.command.strip():
            self._report.error(FILE, f"{key}.command", "is missing: a health check is a shell command")
            return None
        retries = self._get(f"{key}.retries")
        if isinstance(retries, bool) or not isinstance(retries, int | None) or not 0 <= (retries or 0) <= _MOST:
            self._report.error(FILE, f"{key}.retries", f"expected a whole number, got {shown(retries)}")
            retries = None
        return replace(
            usual,
            interval=self._pause(f"{key}.interval_sec", usual.interval),
            timeout=self._number(f"{key}.timeout_sec") or usual.timeout,
            start_period=self._pause(f"{key}.start_period_sec", usual.start_period),
            start_interval=self._pause(f"{key}.start_interval_sec", usual.start_interval),
            retries=usual.retries if retries is None else max(1, retries),
        )

    def _pause(self, key: str, usual: float) -> float:
        """Seconds that may be 0."""
        if self._get(key) == 0:
            return 0.0
        seconds = self._number(key)
        return usual if seconds is None else seconds

    def _scorers(self) -> tuple[Table, ...]:
        value = self._get("scorers")
        if value is None:
            return ()
        if not isinstance(value, list) or not value or not all(isinstance(each, Mapping) for each in value):
            self._report.error(FILE, "scorers", "expected one or more [[scorers]] tables")
            return ()
        return tuple(value)

    def _scoring_mode(self) -> Mode:
        key = "verifier.environment_mode"
        mode, has_own = self._get(key), self._get("verifier.environment") is not None
        if mode is None:
            return "separate" if has_own else "shared"
        if mode not in {"separate", "shared", "live"}:
            self._report.error(FILE, key, f'expected "separate", "shared" or "live", got {shown(mode)}')
        elif mode != "separate" and has_own:
            self._report.error(FILE, key, f'[verifier.environment] needs "separate", got {shown(mode)}')
        elif mode != "separate":
            return "shared" if mode == "shared" else "live"
        return "separate"

    def _artifacts(self) -> tuple[Artifact, ...]:
        listed = self._value("artifacts", list, "a list of paths or tables") or []
        found = [self._artifact(f"artifacts[{number}]", each) for number, each in enumerate(listed)]
        return tuple(filter(None, found))

    def _artifact(self, key: str, given: Any) -> Artifact | None:
        table = {"source": given} if isinstance(given, str) else given
        if not isinstance(table, Mapping):
            self._report.error(FILE, key, f"expected a path, or a table with a source, got {shown(given)}")
            return None
        source, destination, exclude = table.get("source"), table.get("destination"), table.get("exclude", [])
        if not isinstance(source, str) or not source.strip() or ".." in source.split("/"):
            self._report.error(FILE, f"{key}.source", f"expected a path without '..', got {shown(source)}")
            return None
        if not isinstance(destination, str | None) or _leaves(destination or ""):
            why = f"expected a relative path without '..', got {shown(destination)}"
            self._report.error(FILE, f"{key}.destination", why)
            return None
        if not isinstance(exclude, list) or not all(isinstance(each, str) for each in exclude):
            self._report.error(FILE, f"{key}.exclude", f"expected a list of patterns, got {shown(exclude)}")
            return None
        return Artifact(source=source, destination=destination or None, exclude=tuple(exclude))

    def _collect(self) -> tuple[Collect, ...]:
        key = "verifier.collect"
        tables = self._value(key, list, "[[verifier.collect]] tables") or []
        return tuple(filter(None, (self._hook(f"{key}[{number}]", each) for number, each in enumerate(tables))))

    def _hook(self, key: str, table: Any) -> Collect | None:
        command = table.get("command") if isinstance(table, Mapping) else None
        if not isinstance(command, str) or not command.strip():
            self._report.error(FILE, f"{key}.command", f"expected a shell command, got {shown(command)}")
            return None
        timeout = self._above_zero(f"{key}.timeout_sec", table.get("timeout_sec"))
        return Collect(command=command, timeout=timeout or 60.0)

    def _variables(self) -> dict[str, str]:
        key, values = "environment.env", {}
        for name, value in self._env(key).items():
            found = TEMPLATE.fullmatch(value)
            if found and found[1] != name:
                self._report.warn(FILE, f"{key}.{name}", f"taken from the run under its own name, not as {found[1]}")
            if not found:
                values[name] = value
            elif found[2] is not None:
                values[name] = found[2]
            else:
                self._required[name] = None
        return values

    def _script_env(self, key: str) -> dict[str, str]:
        values = self._env(key)
        for name, value in values.items():
            found = TEMPLATE.fullmatch(value)
            if found and found[2] is None:
                self._required[found[1]] = None
                self._report.warn(
                    FILE, f"{key}.{name}", f"{found[1]} must come with the run, and the agent sees it too"
                )
        return values

    def _env(self, key: str) -> dict[str, str]:
        values = {}
        for name, value in (self._value(key, dict, "a table of texts") or {}).items():
            if not _NAME.fullmatch(name):
                self._report.error(FILE, f"{key}.{name}", "is not the name of an environment variable")
            elif not isinstance(value, str):
                self._report.error(FILE, f"{key}.{name}", f"expected a text, got {shown(value)}")
            else:
                values[name] = value
        return values

    def _refusals(self) -> Iterator[tuple[str, str]]:
        for key in ("environment.gpus", "environment.tpu"):
            if self._get(key):
                yield key, "devboxes have none: leave it out, or run the task elsewhere"
        if self._get("environment.os") not in {None, "linux"}:
            yield "environment.os", "devboxes run Linux only"
        if self._get("environment.mcp_servers"):
            yield "environment.mcp_servers", "no such server is started, so agents would lack its tools"
        for phase in ("agent", "verifier", "verifier.environment"):
            yield from self._network_refusals(phase)
        for key, value in (self._value("verifier.environment", dict, "a table") or {}).items():
            if key not in _OF_VERIFIERS and value != self._get(f"environment.{key}"):
                yield f"verifier.environment.{key}", "only sizes are supported there: it is the scenario's environment"
        for key in ("artifacts", "verifier.collect"):
            for number, table in enumerate(self._get(key) if isinstance(self._get(key), list) else ()):
                if isinstance(table, Mapping) and table.get("service") not in {None, "main"}:
                    yield f"{key}[{number}].service", "there is one container only, main"

    def _network_refusals(self, phase: str) -> Iterator[tuple[str, str]]:
        """A phase that reaches more than the devbox would fail; one that reaches less would be let out."""
        given = {key: self._get(f"{phase}.{key}") for key in ("network_mode", "allowed_hosts")}
        whole = {key: self._get(f"environment.{key}") for key in given}
        mode = "public" if self._get("environment.allow_internet") is True else "no-network"
        whole["network_mode"] = whole["network_mode"] or mode
        for key, value in given.items():
            if value is not None and value != whole[key]:
                yield f"{phase}.{key}", "a devbox has one network setting, [environment]'s, and this is another"

    def _judge_keys(self) -> None:
        for section, known in _KNOWN.items():
            table = self._get(section) if section else self._document
            if table is None:
                continue
            if not isinstance(table, Mapping):
                self._report.error(FILE, section, f"expected a table, [{section}]")
                continue
            for key, value in table.items():
                self._judge_key(f"{section}.{key}" if section else key, key, value, known)
        if self._get("steps"):
            self._report.error(FILE, "steps", "tasks of several steps are not supported: make each a scenario")

    def _judge_key(self, dotted: str, key: str, value: Any, known: Collection[str]) -> None:
        if key not in known:
            meant = nearest(key, known)
            if meant:
                self._report.error(FILE, dotted, f"unknown key; did you mean {meant}?")
            else:
                self._note(dotted, "unknown key, ignored")
        elif dotted in _NOTED and value:
            self._note(dotted, f"ignored: {_NOTED[dotted]}")

    def _note(self, key: str, why: str) -> None:
        """Something that is asked for in vain, and changes no score."""
        self._report.warn(FILE, key, why)
        problem = self._report.problems[-1]
        self._notes.append(f"{problem.file}: {problem.key}: {problem.message}")


def _leaves(path: str) -> bool:
    """Whether a path may lead out of the folder it starts in."""
    return path.startswith("/") or "\\" in path or ".." in path.split("/")
