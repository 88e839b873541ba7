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

from orchestrator.core.protocol import (
    PLACEHOLDER,
    AdditionalContext,
    McpServer,
    McpTransport,
    RewardStrategy,
    ScoringMode,
)
from orchestrator.service.content import TomlError, parse_toml
from orchestrator.service.definitions.self_extracting import TEMPLATE, split
from orchestrator.service.diagnostics import Report, Requirement, nearest, shown
from orchestrator.service.sandbox.egress.addresses import address_of, is_global
from orchestrator.service.sandbox.egress.rules import Rules, check_hosts, is_address
from orchestrator.service.sandbox.prepared import Healthcheck
from orchestrator.service.scoring.rewards import RECORD

FILE: Final = "task.toml"
Table = Mapping[str, Any]
T = TypeVar("T")
"""`separate`: a fresh box, and only those files of the agent that may cross. `shared`: a new box over the same files.
`live`: the agent's own box, processes included."""

_PHASE: Final = {"timeout_sec", "user", "network_mode", "allowed_hosts"}
_ENVIRONMENT: Final = {
    *("build_timeout_sec", "docker_image", "os", "workdir", "env", "cpus", "memory_mb", "memory", "storage_mb"),
    *("storage", "gpus", "gpu_types", "tpu", "allow_internet", "network_mode", "allowed_hosts", "mcp_servers"),
    *("skills_dir", "healthcheck"),
}
_KNOWN: Final[Mapping[str, Collection[str]]] = {
    "": {
        *("version", "schema_version", "source", "task", "metadata", "agent", "verifier", "environment", "solution"),
        *("scorers", "steps", "multi_step_reward_strategy", "artifacts"),
    },
    "agent": _PHASE,
    "verifier": _PHASE | {"env", "environment_mode", "environment", "collect"},
    "solution": {"env"},
    "environment": _ENVIRONMENT,
    "verifier.environment": _ENVIRONMENT,
}
_OF_STEPS: Final = ("name", "agent", "verifier", "min_reward", "healthcheck", "artifacts")
_SIZE: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT])(?:i?B)?\s*", re.IGNORECASE)
_MEGABYTES: Final = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}
#: Seconds, cores or mebibytes: more means nothing, and overflows.
_MOST: Final = 1_000_000_000
#: The largest devbox of the published API: cores, GiB of memory and of disk.
_MAX_CORES: Final = 16
_MAX_MEMORY_GIB: Final = 64
_MAX_DISK_GIB: Final = 64
_NOT_PUBLIC: Final = "is not a public address: only an agent's file may name addresses of your own network"
_CLOSES_NOTHING: Final = 'an empty list closes nothing; write network_mode = "no-network" for no network'
_NETWORK_MODES: Final = ("public", "no-network", "allowlist")
#: A relative path that may lead out of the folder it starts in.
_LEAVES: Final = re.compile(r"^/|\\|(^|/)\.\.(/|\Z)")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: The name of a step is that of its folder, and of a folder of results.
_STEP_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def required_by(key: str) -> Requirement | None:
    """What a key of task.toml asks for that another machine may have."""
    if key.endswith("environment.gpus"):
        return Requirement.GPU
    return Requirement.ENGINE if key.endswith(".service") else None


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

    It starts in the working directory. `timeout` is in seconds, and an empty `user` is the image's own.
    """

    command: str
    timeout: float = 60.0
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a box reaches: the public internet, or else only the `hosts`.

    As Harbor has it, an environment that does not say has the internet, and a phase the network of its environment.
    """

    network: bool = False
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A table [environment]. Times are seconds, sizes mebibytes; None stands for a key that is not given.

    `variables` reach the box. Those of `templates` are taken from the variables that come with the run (`TEMPLATE`);
    where they have a default, `variables` has that.
    """

    build_timeout: float = 600.0
    docker_image: str | None = None
    cpus: float | None = None
    memory_mb: float | None = None
    storage_mb: float | None = None
    reach: Reach = field(default_factory=Reach)
    workdir: str | None = None
    healthcheck: Healthcheck | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task.toml. Times are seconds, sizes mebibytes; None stands for a key that is not given.

    `environment` is the agent's, `verifier_environment` that of its own which a separate verifier asks for;
    `verifier_reach` is what scorers reach where they say so. `required` are the names of variables that must come with
    the run, and the `optional` ones may; no agent needs those that are for `scorers_only`. `verifier_env` and
    `solution_env` may hold templates (`${NAME}`), which are filled in where the scripts run. `launch_parameters` are
    the sizes as the wire knows them, empty where none is given. `refusals` are (key, why) for requests that cannot be
    met here and would change the score; `notes` name those that have no effect and change no score.
    """

    difficulty: str | None = None
    category: str | None = None
    tags: tuple[str, ...] = ()
    agent_timeout: float | None = None
    verifier_timeout: float = 600.0
    environment: Environment = field(default_factory=Environment)
    launch_parameters: Mapping[str, Any] = field(default_factory=dict)
    user: str = ""
    verifier_user: str = ""
    verifier_environment: Environment | None = None
    verifier_reach: Reach = field(default_factory=Reach)
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    scorers_only: tuple[str, ...] = ()
    verifier_env: Mapping[str, str] = field(default_factory=dict)
    solution_env: Mapping[str, str] = field(default_factory=dict)
    scorers: tuple[Table, ...] = ()
    scoring_mode: ScoringMode = ScoringMode.SHARED
    artifacts: tuple[Artifact, ...] = ()
    collect: tuple[Collect, ...] = ()
    mcp_servers: tuple[McpServer, ...] = ()
    skills_dir: str = ""
    refusals: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    steps: tuple["TaskStep", ...] = ()
    reward_strategy: RewardStrategy = RewardStrategy.MEAN

    def labels(self) -> dict[str, str]:
        """Return the part that a scenario's metadata shows, by the metadata's keys."""
        reach = self.environment.reach
        labels = {
            "category": self.category,
            "difficulty": self.difficulty,
            "tags": ",".join(self.tags) or None,
            "agent_timeout_sec": None if self.agent_timeout is None else f"{self.agent_timeout:g}",
            "reaches": ",".join([*(["internet"] if reach.network else []), *reach.hosts]) or None,
            "notes": "\n".join(self.notes) or None,
        }
        return {key: value for key, value in labels.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStep:
    """A step of several; `task` is the task as it is in that step.

    No step follows one with a reward below its `min_reward`, by the names of rewards.
    """

    name: str
    task: Task
    min_reward: Mapping[str, float] = field(default_factory=dict)


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
        #: The names of variables in templates, with the tables that have them, and those without a default.
        self._wanted: dict[str, set[str]] = {}
        self._required: dict[str, None] = {}
        self._notes: list[str] = []

    def task(self) -> Task:
        self._judge_keys()
        environment = self._environment("environment")
        of_verifier = None
        if self._get("verifier.environment") is not None:
            of_verifier = self._environment("verifier.environment")
        tags = self._get("metadata.tags")
        artifacts, collect = self._crossing()
        servers = self._mcp_servers()
        task = Task(
            difficulty=self._label("metadata.difficulty"),
            category=self._label("metadata.category"),
            tags=tuple(map(str, tags)) if isinstance(tags, list) else (),
            agent_timeout=self._number("agent.timeout_sec"),
            verifier_timeout=self._number("verifier.timeout_sec") or 600.0,
            environment=replace(environment, reach=self._reach("agent") or environment.reach),
            launch_parameters=self._launch_parameters(environment),
            user=self._user("agent.user", self._get("agent.user")),
            verifier_user=self._user("verifier.user", self._get("verifier.user")),
            verifier_environment=of_verifier,
            verifier_reach=self._reach("verifier") or (of_verifier or environment).reach,
            verifier_env=self._script_env("verifier.env"),
            solution_env=self._script_env("solution.env"),
            **self._names(),
            scorers=self._scorers(),
            scoring_mode=self._scoring_mode(),
            artifacts=artifacts,
            collect=collect,
            mcp_servers=servers,
            skills_dir=self._value("environment.skills_dir", str, "the path of a folder in the devbox") or "",
            refusals=tuple(self._refusals()),
            notes=tuple(self._notes),
        )
        return self._with_steps(task) if self._get("steps") else task

    def _with_steps(self, task: Task) -> Task:
        """Read the steps: each is the task with the sections of its own laid over the task's."""
        known, steps, refusals = set(self._report.problems), list[TaskStep](), list(task.refusals)
        for number, table in enumerate(self._value("steps", list, "[[steps]] tables") or []):
            key, report = f"steps[{number}]", Report()
            if not isinstance(table, Mapping):
                self._error(key, f"expected a table, [[steps]], got {shown(table)}")
                continue
            for unknown in table.keys() - set(_OF_STEPS):
                self._note(f"{key}.{unknown}", "unknown key, ignored")
            name = table.get("name")
            if not isinstance(name, str) or not _STEP_NAME.fullmatch(name):
                self._error(
                    f"{key}.name",
                    f"expected letters, digits, '.', '_' and '-', as its folder in steps/ is named, got {shown(name)}",
                )
            elif name in {step.name for step in steps}:
                self._error(f"{key}.name", f"{name!r} is the name of a step before it, too")
            else:
                during = _TaskReader(_during(self._document, table), report)
                steps.append(TaskStep(name=name, task=during.task(), min_reward=self._min_reward(key, table)))
                self._required |= during._required
                for name_of, sections in during._wanted.items():
                    self._wanted.setdefault(name_of, set()).update(sections)
                refusals += [
                    (f"{key}.{of}", why) for of, why in steps[-1].task.refusals if (of, why) not in task.refusals
                ]
            self._report.problems += [
                each._replace(key=f"{key}.{each.key}") for each in report.problems if each not in known
            ]

        users = {step.task.user for step in steps}
        if len(users) > 1:
            refusals.append(("steps", "the agents of all steps are one user here"))
        reaches = {step.task.environment.reach for step in steps}
        if len(reaches) > 1:
            refusals.append(("steps", "the agents of all steps have one network here"))
        if self._get("scorers"):
            self._error("scorers", "each of [[steps]] is scored by tests of its own: put them into its tests/")
        strategy = self._get("multi_step_reward_strategy") or RewardStrategy.MEAN
        if strategy not in tuple(RewardStrategy):
            self._error("multi_step_reward_strategy", f'expected "mean" or "final", got {shown(strategy)}')
            strategy = RewardStrategy.MEAN
        return replace(
            task,
            environment=replace(task.environment, reach=next(iter(reaches), task.environment.reach)),
            user=next(iter(users), ""),
            **self._names(),
            refusals=tuple(refusals),
            steps=tuple(steps),
            reward_strategy=RewardStrategy(strategy),
        )

    def _min_reward(self, key: str, table: Table) -> Mapping[str, float]:
        least = table.get("min_reward", {})
        named = least if isinstance(least, Mapping) else {RECORD: least}
        for value in named.values():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                self._error(f"{key}.min_reward", f"expected a number, or a table of them, got {shown(least)}")
                return {}
        return {name: float(value) for name, value in named.items()}

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

    def _environment(self, section: str) -> Environment:
        variables, templates = split(self._script_env(f"{section}.env"))
        return Environment(
            build_timeout=self._number(f"{section}.build_timeout_sec") or 600.0,
            docker_image=self._value(f"{section}.docker_image", str, "a string"),
            cpus=self._number(f"{section}.cpus"),
            memory_mb=self._size(f"{section}.memory_mb", f"{section}.memory"),
            storage_mb=self._size(f"{section}.storage_mb", f"{section}.storage"),
            reach=self._reach(section) or Reach(network=True),
            workdir=self._workdir(f"{section}.workdir"),
            healthcheck=self._healthcheck(f"{section}.healthcheck"),
            variables=variables,
            templates=templates,
        )

    def _user(self, key: str, value: Any) -> str:
        """Read a user of the image, by name or number."""
        if value is None or (isinstance(value, int | str) and not isinstance(value, bool) and str(value)):
            return "" if value is None else str(value)
        self._error(key, f"expected the name or number of a user, got {shown(value)}")
        return ""

    def _label(self, key: str) -> str | None:
        """Read a label. Metadata is free in Harbor: a value that is not a string is shown as one."""
        value = self._get(key)
        return None if value is None else str(value)

    def _launch_parameters(self, environment: Environment) -> Table:
        """Return sizes that are large enough: the published API knows few of them, and 2 to 8 GiB a core."""
        cpus, memory_mb, storage_mb = environment.cpus, environment.memory_mb, environment.storage_mb
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

    def _reach(self, section: str) -> Reach | None:
        """Read what boxes reach, of an environment or of a phase; None where it does not say."""
        mode = self._value(f"{section}.network_mode", str, "a string")
        allowed = self._value(f"{section}.allow_internet", bool, "true or false")
        network = mode == "public" if mode in _NETWORK_MODES else bool(allowed)
        key = f"{section}.allowed_hosts"
        if mode is None and allowed is None and self._get(key) in (None, []):
            if self._get(key) is not None:
                self._note(key, _CLOSES_NOTHING)
            return None
        if mode is not None and mode not in _NETWORK_MODES:
            expected = 'expected "public", "no-network" or "allowlist"'
            self._error(f"{section}.network_mode", f"{expected}, got {shown(mode)}")

        hosts = [str(host) for host in self._value(key, list, "a list of hosts") or ()]
        try:
            check_hosts(hosts)
        except ValueError as error:
            self._error(key, str(error))
            return Reach(network=network)
        for address in [address_of(rule.host) for rule in Rules.parse(hosts).all if is_address(rule.host)]:
            if not (address.is_loopback or is_global(address)):
                self._error(key, f"{address} {_NOT_PUBLIC}")
        return Reach(network=network, hosts=() if mode == "no-network" else tuple(hosts))

    def _workdir(self, key: str) -> str | None:
        path = self._value(key, str, "a string")
        if path is not None and (not path.startswith("/") or ".." in path.split("/") or path.strip("/") == ""):
            self._error(key, f"expected an absolute path below /, got {shown(path)}")
            return None
        return path

    def _healthcheck(self, key: str) -> Healthcheck | None:
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
                user = self._user(f"{key}.user", table.get("user"))
                collect.append(Collect(command=command, timeout=timeout or 60.0, user=user))
            else:
                self._error(f"{key}.command", f"expected a shell command, got {shown(command)}")
        return tuple(artifacts), tuple(collect)

    def _mcp_servers(self) -> tuple[McpServer, ...]:
        """Read the servers; of two with one name, the last."""
        servers: dict[str, McpServer] = {}
        for number, given in enumerate(self._value("environment.mcp_servers", list, "[[…mcp_servers]] tables") or []):
            key, table = f"environment.mcp_servers[{number}]", given if isinstance(given, Mapping) else {}
            name, url, command = (table.get(word) or "" for word in ("name", "url", "command"))
            kind, args, headers = table.get("transport", "sse"), table.get("args", []), table.get("headers", {})
            kind = "streamable-http" if kind == "http" else kind
            needed = "command" if kind == "stdio" else "url"
            if kind not in tuple(McpTransport):
                expected = 'expected "stdio", "sse" or "streamable-http"'
                self._error(f"{key}.transport", f"{expected}, got {shown(kind)}")
            elif not all(isinstance(each, str) for each in (name, url, command)) or not name:
                self._error(f"{key}.name", "expected a server with a name, and with url or command, all of them texts")
            elif not table.get(needed):
                self._error(f"{key}.{needed}", f"is missing: a server by {kind} has one")
            elif not isinstance(args, list) or not all(isinstance(each, str) for each in args):
                self._error(f"{key}.args", f"expected a list of texts, got {shown(args)}")
            elif not isinstance(headers, Mapping) or not all(isinstance(each, str) for each in headers.values()):
                self._error(f"{key}.headers", f"expected a table of texts, got {shown(headers)}")
            elif any("${" in PLACEHOLDER.sub("", each) for each in headers.values()):
                self._error(f"{key}.headers", "a variable in a header is written ${NAME}, or ${NAME:-default}")
            else:
                servers[name] = McpServer(
                    name=name,
                    transport=McpTransport(kind),
                    url=url,
                    command=command,
                    args=tuple(args),
                    headers=dict(headers),
                )
        found = AdditionalContext(mcp_servers=tuple(servers.values()))
        for name in (name for name, is_required in found.variables.items() if is_required):
            self._report.warn(FILE, "environment.mcp_servers", f"{name} must come from whoever runs it")
        return found.mcp_servers

    def _script_env(self, key: str) -> dict[str, str]:
        values = self._env(key)
        for name, value in values.items():
            if found := TEMPLATE.fullmatch(value):
                self._wanted.setdefault(found[1], set()).add(key)
                if found[2] is None:
                    self._required[found[1]] = None
                    self._report.warn(FILE, f"{key}.{name}", f"{found[1]} must come from whoever runs it")
        return values

    def _names(self) -> dict[str, Any]:
        """Return the names of variables in templates, as a task has them."""
        of_scorers = {"verifier.env", "verifier.environment.env"}
        return {
            "required": tuple(self._required),
            "optional": tuple(name for name in self._wanted if name not in self._required),
            "scorers_only": tuple(name for name, sections in self._wanted.items() if sections <= of_scorers),
        }

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
        for section in ("environment", "verifier.environment"):
            for key in (f"{section}.gpus", f"{section}.tpu"):
                if self._get(key):
                    yield key, "devboxes have none: leave it out, or run the task elsewhere"
            if str(self._get(f"{section}.os") or "linux").lower() != "linux":
                yield f"{section}.os", "devboxes run Linux only"
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
            for key in table or {}:
                dotted = f"{section}.{key}" if section else key
                if key in known:
                    continue
                meant = nearest(key, known)
                self._note(dotted, f"unknown key, ignored{f'; did you mean {meant}?' if meant else ''}")


def _during(document: Table, step: Table) -> Table:
    """Return the document of a task as it is in one step. A step's artifacts come in addition."""

    def laid_over(name: str) -> Any:
        whole, own = document.get(name), step.get(name)
        if not isinstance(whole, Mapping) or not isinstance(own, Mapping):
            return whole if own is None else own
        env = {"env": {**whole["env"], **own["env"]}} if "env" in whole and "env" in own else {}
        return {**whole, **own, **env}

    environment, artifacts, own = document.get("environment"), document.get("artifacts"), step.get("artifacts", [])
    whole = {key: value for key, value in document.items() if key not in {"steps", "scorers"}}
    whole |= {name: laid_over(name) for name in ("agent", "verifier") if name in document or name in step}
    if isinstance(environment, Mapping):
        whole["environment"] = {key: value for key, value in environment.items() if key != "healthcheck"}
    if "healthcheck" in step:
        whole["environment"] = {**whole.get("environment", {}), "healthcheck": step["healthcheck"]}
    if artifacts or own:
        whole["artifacts"] = [*artifacts, *own] if isinstance(artifacts, list) and isinstance(own, list) else own
    return whole
