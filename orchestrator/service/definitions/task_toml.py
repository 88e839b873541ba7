"""`task.toml`: Harbor's keys and ours, read into one record; every mistake is reported with its key.

An unknown key is Harbor's, present or future, and causes a warning only: a foreign task must stay readable. A key that
is nearly a known one is a mistake, because a time limit that silently does not apply costs a night.
Source of the keys: Harbor's task format, schema 1.0 to 1.4; `[[scorers]]` and the scoring mode `live` are ours.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from orchestrator.core.protocol import ScoringMode
from orchestrator.service.content import TomlError, parse_toml
from orchestrator.service.definitions.self_extracting import TEMPLATE
from orchestrator.service.diagnostics import Report, nearest, shown
from orchestrator.service.sandbox.egress.addresses import address_of, is_global
from orchestrator.service.sandbox.egress.rules import Rules, check_hosts, is_address
from orchestrator.service.sandbox.prepared import Healthcheck

FILE: Final = "task.toml"
Table = Mapping[str, Any]
T = TypeVar("T")
"""`separate`: a fresh box, and only those files of the agent that may cross. `shared`: a new box over the same files.
`live`: the agent's own box, processes included."""

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
#: Keys that have no effect here and change no score; `_TaskReader._refusals` has those that would.
_NOTED: Final = {
    "environment.skills_dir": "agents are not told of it",
}
#: Keys that a verifier's environment may have with other values, or that are judged elsewhere.
_OF_VERIFIERS: Final = {
    *("cpus", "memory_mb", "memory", "storage_mb", "storage", "build_timeout_sec"),
    *("docker_image", "network_mode", "allowed_hosts"),
}
_SIZE: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT])(?:i?B)?\s*", re.IGNORECASE)
_MEGABYTES: Final = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}
#: Seconds, cores or mebibytes: more means nothing, and overflows.
_MOST: Final = 1_000_000_000
#: The largest devbox of the published API: cores, GiB of memory and of disk.
_MAX_CORES: Final = 16
_MAX_MEMORY_GIB: Final = 64
_MAX_DISK_GIB: Final = 64
_NO_NETWORK: Final = "is missing, so the devbox has no network: write allow_internet = true or false"
_NOT_PUBLIC: Final = "is not a public address: only an agent's file may name addresses of your own network"
_NETWORK_MODES: Final = ("public", "no-network", "allowlist")
#: A relative path that may lead out of the folder it starts in.
_LEAVES: Final = re.compile(r"^/|\\|(^|/)\.\.(/|\Z)")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file or folder of the agent's box that is collected, and crosses to a separate scoring box at the same path.

    `source` is a path of the box, relative ones starting at the working directory; `destination` is relative to the
    folder of collected files, None for the mirror of its source. Neither has `..` in it. `exclude` are patterns as
    tar's.
    """

    source: str
    destination: str | None = None
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect:
    """A command that runs after the agent and before its artifacts are collected, by `bash -c` in the agent's box.

    It starts in the working directory. `timeout` is in seconds.
    """

    command: str
    timeout: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task.toml. Times are seconds, sizes mebibytes; None stands for a key that is not given.

    `variables` reach the devbox; `required` must come with the run. `verifier_env` and `solution_env` may hold
    templates (`${NAME}`), which are filled in where the scripts run. `hosts` may be reached though `network` is off, by
    devboxes with walls. `launch_parameters` are the sizes as the wire knows them, empty where none is given.
    `refusals` are (key, why) for requests that cannot be met here and would change the score; `notes` name those that
    have no effect and change no score.
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
    launch_parameters: Mapping[str, Any] = field(default_factory=dict)
    network: bool = False
    hosts: tuple[str, ...] = ()
    workdir: str | None = None
    healthcheck: Healthcheck | None = None
    docker_image: str | None = None
    user: str = ""
    verifier_user: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    verifier_env: Mapping[str, str] = field(default_factory=dict)
    solution_env: Mapping[str, str] = field(default_factory=dict)
    scorers: tuple[Table, ...] = ()
    scoring_mode: ScoringMode = ScoringMode.SHARED
    artifacts: tuple[Artifact, ...] = ()
    collect: tuple[Collect, ...] = ()
    verifier_image: str | None = None
    refusals: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    has_steps: bool = False

    def labels(self) -> dict[str, str]:
        """Return the part that a scenario's metadata shows, by the metadata's keys."""
        labels = {
            "category": self.category,
            "difficulty": self.difficulty,
            "tags": ",".join(self.tags) or None,
            "agent_timeout_sec": None if self.agent_timeout is None else f"{self.agent_timeout:g}",
            "reaches": ",".join([*(["internet"] if self.network else []), *self.hosts]) or None,
            "notes": "\n".join(self.notes) or None,
        }
        return {key: value for key, value in labels.items() if value is not None}


def read_task(data: bytes, report: Report) -> Task:
    """Read the content of a task.toml; mistakes go to `report`, and a wrong value is replaced by its default."""
    try:
        document = parse_toml(data)
    except TomlError as error:
        report.error(FILE, error.key, str(error))
        return Task()
    return _TaskReader(document, report).task()


class _TaskReader:
    """Reads one document; mistakes go to `report`. Keys are dotted: `environment.cpus`."""

    def __init__(self, document: Table, report: Report) -> None:
        self._document = document
        self._report = report
        self._required: dict[str, None] = {}
        self._notes: list[str] = []

    def task(self) -> Task:
        self._judge_keys()
        variables = self._variables()
        cpus = self._number("environment.cpus")
        memory_mb = self._size("environment.memory_mb", "environment.memory")
        storage_mb = self._size("environment.storage_mb", "environment.storage")
        tags = self._get("metadata.tags")
        network, hosts = self._network()
        artifacts, collect = self._crossing()
        return Task(
            difficulty=self._label("metadata.difficulty"),
            category=self._label("metadata.category"),
            tags=tuple(map(str, tags)) if isinstance(tags, list) else (),
            agent_timeout=self._number("agent.timeout_sec"),
            verifier_timeout=self._number("verifier.timeout_sec") or 600.0,
            build_timeout=self._number("environment.build_timeout_sec") or 600.0,
            cpus=cpus,
            memory_mb=memory_mb,
            storage_mb=storage_mb,
            launch_parameters=self._launch_parameters(cpus, memory_mb, storage_mb),
            network=network,
            hosts=hosts,
            workdir=self._workdir(),
            healthcheck=self._healthcheck(),
            docker_image=self._value("environment.docker_image", str, "a string"),
            user=self._user("agent.user"),
            verifier_user=self._user("verifier.user"),
            variables=variables,
            verifier_env=self._script_env("verifier.env"),
            solution_env=self._script_env("solution.env"),
            required=tuple(self._required),
            scorers=self._scorers(),
            scoring_mode=self._scoring_mode(),
            artifacts=artifacts,
            collect=collect,
            verifier_image=self._value("verifier.environment.docker_image", str, "a string"),
            refusals=tuple(self._refusals()),
            notes=tuple(self._notes),
            has_steps=bool(self._get("steps")),
        )

    def _get(self, key: str) -> Any:
        value: Any = self._document
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def _error(self, key: str, message: str) -> None:
        self._report.error(FILE, key, message)

    def _note(self, key: str, why: str) -> None:
        """Warn of a request that has no effect and changes no score, and keep the warning for the results."""
        self._report.warn(FILE, key, why)
        problem = self._report.problems[-1]
        self._notes.append(f"{problem.file}: {problem.key}: {problem.message}")

    def _value(self, key: str, kind: type[T], expected: str) -> T | None:
        value = self._get(key)
        if value is None or isinstance(value, kind):
            return value
        self._error(key, f"expected {expected}, got {shown(value)}")
        return None

    def _number(self, key: str) -> float | None:
        return self._above_zero(key, self._get(key))

    def _above_zero(self, key: str, value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value <= 0:
            self._error(key, f"expected a number above 0, got {shown(value)}")
            return None
        if value > _MOST:
            self._error(key, f"expected a number up to {_MOST:,}, got {shown(value)}")
            return None
        return float(value)

    def _pause(self, key: str, usual: float) -> float:
        """Read seconds that may be 0."""
        if self._get(key) == 0:
            return 0.0
        seconds = self._number(key)
        return usual if seconds is None else seconds

    def _size(self, key: str, older: str) -> float | None:
        """Read mebibytes, from a number or from the older spelling `"2G"`."""
        text = self._get(older)
        if text is None or self._get(key) is not None:
            return self._number(key)
        found = _SIZE.fullmatch(text) if isinstance(text, str) else None
        size = float(found[1]) * _MEGABYTES[found[2].upper()] if found else 0
        if not 0 < size <= _MOST:
            self._error(older, f'expected a size such as "512M" or "2G", got {shown(text)}')
            return None
        return size

    def _user(self, key: str) -> str:
        """Read a user of the image, by name or number."""
        value = self._get(key)
        if value is None or (isinstance(value, int | str) and not isinstance(value, bool) and str(value)):
            return "" if value is None else str(value)
        self._error(key, f"expected the name or number of a user, got {shown(value)}")
        return ""

    def _label(self, key: str) -> str | None:
        """Read a label. Metadata is free in Harbor: a value that is not a string is shown as one."""
        value = self._get(key)
        return None if value is None else str(value)

    def _launch_parameters(self, cpus: float | None, memory_mb: float | None, storage_mb: float | None) -> Table:
        """Return sizes that are large enough: the published API knows few of them, and 2 to 8 GiB a core."""
        if cpus is None and memory_mb is None and storage_mb is None:
            return {}
        memory = self._rounded("memory_mb", (memory_mb or 2048) / 1024, _MAX_MEMORY_GIB)
        cores = self._rounded("cpus", max(cpus or 1, memory / 8), _MAX_CORES)
        sizes = {"custom_cpu_cores": cores, "custom_gb_memory": max(memory, 2 * cores)}
        if storage_mb is not None:
            sizes |= {"custom_disk_size": max(2, self._rounded("storage_mb", storage_mb / 1024, _MAX_DISK_GIB))}
        return {"resource_size_request": "CUSTOM_SIZE", **sizes}

    def _rounded(self, key: str, wanted: float, most: int) -> int:
        """Round up to a size there is: 1, or an even number."""
        if wanted > most:
            self._note(f"environment.{key}", f"asks for more than a devbox can have; it gets {most}")
        return 1 if wanted <= 1 else min(most, 2 * math.ceil(wanted / 2))

    def _network(self) -> tuple[bool, tuple[str, ...]]:
        """Return True if the devbox has a network, and the hosts that it may reach without."""
        mode = self._value("environment.network_mode", str, "a string")
        allowed = self._value("environment.allow_internet", bool, "true or false")
        network = mode == "public" if mode in _NETWORK_MODES else bool(allowed)
        if mode is None and allowed is None and self._get("environment.allowed_hosts") is None:
            self._report.warn(FILE, "environment.allow_internet", _NO_NETWORK)
        elif mode is not None and mode not in _NETWORK_MODES:
            expected = 'expected "public", "no-network" or "allowlist"'
            self._error("environment.network_mode", f"{expected}, got {shown(mode)}")

        key = "environment.allowed_hosts"
        hosts = [str(host) for host in self._value(key, list, "a list of hosts") or ()]
        try:
            check_hosts(hosts)
        except ValueError as error:
            self._error(key, str(error))
            return network, ()
        for address in [address_of(rule.host) for rule in Rules.parse(hosts).all if is_address(rule.host)]:
            if not (address.is_loopback or is_global(address)):
                self._error(key, f"{address} {_NOT_PUBLIC}")
        return network, () if mode == "no-network" else tuple(hosts)

    def _workdir(self) -> str | None:
        key = "environment.workdir"
        path = self._value(key, str, "a string")
        if path is not None and (not path.startswith("/") or ".." in path.split("/") or path.strip("/") == ""):
            self._error(key, f"expected an absolute path below /, got {shown(path)}")
            return None
        return path

    def _healthcheck(self) -> Healthcheck | None:
        key = "environment.healthcheck"
        table = self._value(key, dict, "a table with a command")
        if table is None:
            return None
        usual = Healthcheck(command=self._value(f"{key}.command", str, "a shell command") or "")
        if not usual.command.strip():
            self._error(f"{key}.command", "is missing: a health check is a shell command")
            return None
        retries = self._get(f"{key}.retries")
        if isinstance(retries, bool) or not isinstance(retries, int | None) or not 0 <= (retries or 0) <= _MOST:
            self._error(f"{key}.retries", f"expected a whole number, got {shown(retries)}")
            retries = None
        return replace(
            usual,
            interval=self._pause(f"{key}.interval_sec", usual.interval),
            timeout=self._number(f"{key}.timeout_sec") or usual.timeout,
            start_period=self._pause(f"{key}.start_period_sec", usual.start_period),
            start_interval=self._pause(f"{key}.start_interval_sec", usual.start_interval),
            retries=usual.retries if retries is None else max(1, retries),
        )

    def _scorers(self) -> tuple[Table, ...]:
        value = self._get("scorers")
        if value is None:
            return ()
        if not isinstance(value, list) or not value or not all(isinstance(each, Mapping) for each in value):
            self._error("scorers", "expected one or more [[scorers]] tables")
            return ()
        return tuple(value)

    def _scoring_mode(self) -> ScoringMode:
        key = "verifier.environment_mode"
        mode, has_own = self._get(key), self._get("verifier.environment") is not None
        if mode is None:
            return ScoringMode.SEPARATE if has_own else ScoringMode.SHARED
        if mode not in tuple(ScoringMode):
            self._error(key, f'expected "separate", "shared" or "live", got {shown(mode)}')
            return ScoringMode.SEPARATE
        if mode != ScoringMode.SEPARATE and has_own:
            self._error(key, f'[verifier.environment] needs "separate", got {shown(mode)}')
        return ScoringMode(mode)

    def _crossing(self) -> tuple[tuple[Artifact, ...], tuple[Collect, ...]]:
        """Read the files that leave the agent's box, and the commands that write such files."""
        artifacts: list[Artifact] = []
        for number, given in enumerate(self._value("artifacts", list, "a list of paths or tables") or []):
            key, table = f"artifacts[{number}]", {"source": given} if isinstance(given, str) else given
            if not isinstance(table, Mapping):
                self._error(key, f"expected a path, or a table with a source, got {shown(given)}")
                continue
            source, destination, exclude = table.get("source"), table.get("destination"), table.get("exclude", [])
            if not isinstance(source, str) or not source.strip() or ".." in source.split("/"):
                self._error(f"{key}.source", f"expected a path without '..', got {shown(source)}")
            elif not isinstance(destination, str | None) or _LEAVES.search(destination or ""):
                self._error(f"{key}.destination", f"expected a relative path without '..', got {shown(destination)}")
            elif not isinstance(exclude, list) or not all(isinstance(each, str) for each in exclude):
                self._error(f"{key}.exclude", f"expected a list of patterns, got {shown(exclude)}")
            else:
                artifacts.append(Artifact(source=source, destination=destination or None, exclude=tuple(exclude)))

        collect: list[Collect] = []
        for number, given in enumerate(self._value("verifier.collect", list, "[[verifier.collect]] tables") or []):
            key, table = f"verifier.collect[{number}]", given if isinstance(given, Mapping) else {}
            command = table.get("command")
            if isinstance(command, str) and command.strip():
                timeout = self._above_zero(f"{key}.timeout_sec", table.get("timeout_sec"))
                collect.append(Collect(command=command, timeout=timeout or 60.0))
            else:
                self._error(f"{key}.command", f"expected a shell command, got {shown(command)}")
        return tuple(artifacts), tuple(collect)

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
                why = f"{found[1]} must come with the run, and the agent sees it too"
                self._report.warn(FILE, f"{key}.{name}", why)
        return values

    def _env(self, key: str) -> dict[str, str]:
        values = {}
        for name, value in (self._value(key, dict, "a table of strings") or {}).items():
            if not _NAME.fullmatch(name):
                self._error(f"{key}.{name}", "is not the name of an environment variable: use letters, digits and _")
            elif not isinstance(value, str):
                self._error(f"{key}.{name}", f"expected a string, got {shown(value)}")
            else:
                values[name] = value
        return values

    def _refusals(self) -> Iterator[tuple[str, str]]:
        for key in ("environment.gpus", "environment.tpu"):
            if self._get(key):
                yield key, "devboxes have none: leave it out, or run the task elsewhere"
        if self._get("environment.os") not in (None, "linux"):
            yield "environment.os", "devboxes run Linux only"
        if self._get("environment.mcp_servers"):
            yield "environment.mcp_servers", "no such server is started, so agents would lack its tools"

        # a phase that reaches more than the devbox would fail; one that reaches less would be let out
        usual = "public" if self._get("environment.allow_internet") is True else "no-network"
        whole = {"network_mode": self._get("environment.network_mode") or usual}
        whole |= {"allowed_hosts": self._get("environment.allowed_hosts")}
        for phase in ("agent", "verifier", "verifier.environment"):
            for name, setting in whole.items():
                if self._get(f"{phase}.{name}") not in (None, setting):
                    yield f"{phase}.{name}", "a devbox has one network setting, [environment]'s, and this is another"

        for key, value in (self._value("verifier.environment", dict, "a table") or {}).items():
            if key not in _OF_VERIFIERS and value != self._get(f"environment.{key}"):
                yield f"verifier.environment.{key}", "only sizes are supported there: it is the scenario's environment"
        for key in ("artifacts", "verifier.collect"):
            for number, table in enumerate(self._get(key) if isinstance(self._get(key), list) else ()):
                if isinstance(table, Mapping) and table.get("service") not in (None, "main"):
                    yield f"{key}[{number}].service", "there is one container only, main"

    def _judge_keys(self) -> None:
        for section, known in _KNOWN.items():
            table = self._get(section) if section else self._document
            if not isinstance(table, Mapping | None):
                self._error(section, f"expected a table, [{section}]")
                continue
            for key, value in (table or {}).items():
                dotted = f"{section}.{key}" if section else key
                if key in known:
                    if dotted in _NOTED and value:
                        self._note(dotted, f"ignored: {_NOTED[dotted]}")
                elif meant := nearest(key, known):
                    self._error(dotted, f"unknown key; did you mean {meant}?")
                else:
                    self._note(dotted, "unknown key, ignored")
        if self._get("steps"):
            self._error("steps", "tasks of several steps are not supported: make each a scenario")
