"""`docker-compose.yaml` of an environment, as far as one container needs it: the service `main`, which is the agent's.

What can be met is met. What changes nothing that an agent or a scorer would see is ignored, with a note where its
author may miss it. What changes the box in another way, and every further container, needs a container engine, and is
refused by its key and line. As in Harbor, a service without `image` and `build` has the environment's own.
Source of the keys: the Compose specification, and Harbor's task format.
"""

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from orchestrator.service.definitions.self_extracting import TEMPLATE
from orchestrator.service.diagnostics import Report, Requirement, nearest, shown

MAIN: Final = "main"
#: Keys of a service that change nothing here: the box waits, has its own name, and no other container.
_HARMLESS: Final = frozenset(
    {
        *("annotations", "attach", "container_name", "expose", "hostname", "init", "labels", "logging"),
        *("mem_reservation", "memswap_limit", "platform", "ports", "pull_policy", "restart", "stdin_open"),
        *("stop_grace_period", "stop_signal", "tmpfs", "tty", "ulimits", "shm_size"),
    }
)
#: Those that an author may miss.
_NOTED: Final = {
    "command": "ignored: a devbox waits for its agent, and starts nothing by itself",
    "entrypoint": "ignored: a devbox waits for its agent, and starts nothing by itself",
    "healthcheck": "ignored: write [environment.healthcheck] in task.toml",
    "volumes": "ignored: the folder is the devbox's own",
}
_MET: Final = frozenset(
    {"image", "build", "environment", "working_dir", "user", "cpus", "mem_limit", "deploy", "networks"}
)
_REFUSED: Final = frozenset(
    {
        *("cap_add", "cap_drop", "cgroup", "cgroup_parent", "configs", "credential_spec", "depends_on", "develop"),
        *("device_cgroup_rules", "devices", "dns", "dns_opt", "dns_search", "domainname", "env_file", "extends"),
        *("external_links", "extra_hosts", "gpus", "group_add", "ipc", "isolation", "links", "mac_address"),
        *("network_mode", "pid", "post_start", "pre_stop", "privileged", "read_only", "runtime", "secrets"),
        *("security_opt", "storage_opt", "sysctls", "userns_mode", "uts", "volumes_from"),
    }
)
_BUILD: Final = frozenset({"context", "dockerfile", "dockerfile_inline", "args"})
#: Keys of a build that change nothing of what is built.
_HARMLESS_TO_BUILDS: Final = frozenset(
    {"cache_from", "cache_to", "labels", "no_cache", "platforms", "provenance", "pull", "sbom", "tags"}
)
#: Variables that Harbor sets, by the rest of the task: where one stands, this file says nothing of its own.
_HARBORS: Final = re.compile(r"\$\{(CONTEXT_DIR|MAIN_IMAGE_NAME|PREBUILT_IMAGE_NAME|CPUS|MEMORY)(:?[-?][^}]*)?\}")
#: Folders of the host that Harbor and its forerunner bind for their logs.
_LOGS: Final = re.compile(r"\$\{[A-Z_]*(LOGS|ARTIFACTS)_PATH\}")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)b?", re.IGNORECASE)
_MEGABYTES: Final = {"": 1 / (1 << 20), "k": 1 / 1024, "m": 1, "g": 1024}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeService:
    """What `main` asks for; None or empty where it does not say. Paths are relative to the environment's folder.

    `dockerfile` is the path of one, `inline` the text of one; both are built in the folder `context`, "" being the
    environment's. `variables` may be templates (`TEMPLATE`). Sizes are in cores and mebibytes. `copies` are (from, to):
    files and folders of the environment's folder that it shows at an absolute path of the box.
    """

    image: str | None = None
    dockerfile: str = ""
    inline: str = ""
    context: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    working_directory: str | None = None
    user: str = ""
    cpus: float | None = None
    memory_mb: float | None = None
    copies: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def read_compose(text: str, file: str, report: Report) -> ComposeService:
    """Read the text of a `file`, whose mistakes and refusals go to `report`."""
    loader = yaml.SafeLoader(text)
    try:
        document = loader.get_single_node()
        return _Reader(file, report, loader).service(document)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark else ""
        report.error(file, line, f"is not YAML: {error.problem}")
    except yaml.YAMLError as error:
        report.error(file, "", f"is not YAML: {error}")
    finally:
        loader.dispose()
    return ComposeService()


class _Reader:
    def __init__(self, file: str, report: Report, loader: yaml.SafeLoader) -> None:
        self._file, self._report, self._loader = file, report, loader
        self._notes: list[str] = []
        self._copies: list[tuple[str, str]] = []

    def service(self, document: yaml.Node | None) -> ComposeService:
        whole = self._table(document, "")
        for key, node in whole.items():
            if key in {"include", "configs", "secrets"}:
                self._refuse(node, key)
        services = self._table(whole.get("services"), "services")
        for name, node in services.items():
            if name != MAIN:
                why = f"is a container beside {MAIN}: several need a container engine"
                self._report.error(self._file, f"services.{name}, {_line(node)}", why, Requirement.ENGINE)
        main = self._table(services.get(MAIN), f"services.{MAIN}")
        for key, node in main.items():
            self._judge(key, node)
        self._judge_networks(whole)
        limits = self._values(main.get("deploy")).get("resources", {})
        limits = limits.get("limits") if isinstance(limits, Mapping) else {}
        limits = limits if isinstance(limits, Mapping) else {}
        image = self._text(main, "image")
        context, dockerfile, inline, arguments = self._build(main.get("build"))
        if self._copies and context:
            self._refuse(
                main["volumes"], f"services.{MAIN}.volumes", f"{self._copies[0][0]} is outside the build's context"
            )
        return ComposeService(
            image=None if "build" in main else image,
            context=context,
            dockerfile=dockerfile,
            inline=inline,
            arguments=arguments,
            variables=self._variables(main.get("environment"), f"services.{MAIN}.environment"),
            working_directory=self._text(main, "working_dir"),
            user=self._text(main, "user") or "",
            cpus=self._number(main.get("cpus"), limits.get("cpus")),
            memory_mb=self._megabytes(self._text(main, "mem_limit") or limits.get("memory")),
            copies=tuple(self._copies),
            notes=tuple(self._notes),
        )

    def _judge(self, key: str, node: yaml.Node) -> None:
        value = self._value(node)
        if key == "network_mode" and value == "bridge":
            return
        if key == "volumes":
            for each in value if isinstance(value, list) else [value]:
                if copied := _copied(each):
                    self._copies.append(copied)
                elif not _is_own(each):
                    self._refuse(node, f"services.{MAIN}.volumes", f"{shown(each)} is a folder of the host")
                elif not _LOGS.match(str(each)):
                    self._note(node, key)
        elif key in _NOTED:
            self._note(node, key)
        elif key in _REFUSED and value not in (None, False, [], {}):
            self._refuse(node, f"services.{MAIN}.{key}")
        elif key not in _HARMLESS | _MET | _REFUSED and not key.startswith("x-"):
            meant = nearest(key, _HARMLESS | _MET | _REFUSED | set(_NOTED))
            said = f"unknown key, ignored{f'; did you mean {meant}?' if meant else ''}"
            self._say(f"services.{MAIN}.{key}, {_line(node)}", said)

    def _judge_networks(self, whole: Mapping[str, yaml.Node]) -> None:
        for name, node in self._table(whole.get("networks"), "networks").items():
            if self._values(node).get("internal"):
                why = "is cut off: write network_mode into task.toml"
                self._refuse(node, f"networks.{name}.internal", why)

    def _build(self, node: yaml.Node | None) -> tuple[str, str, str, Mapping[str, str]]:
        """Return the context, the path and the text of a Dockerfile, and the values of its ARGs."""
        key = f"services.{MAIN}.build"
        if node is None:
            return "", "", "", {}
        table = {"context": node} if isinstance(node, yaml.ScalarNode) else self._table(node, key)
        for name, each in table.items():
            if name not in _BUILD | _HARMLESS_TO_BUILDS:
                self._refuse(each, f"{key}.{name}", "is not known to builds here")
        context = posixpath.normpath(self._text(table, "context") or ".")
        dockerfile = posixpath.normpath(posixpath.join(context, self._text(table, "dockerfile") or "Dockerfile"))
        for path in (context, dockerfile):
            if path.startswith(("/", "..")) or "://" in path:
                self._report.error(self._file, f"{key}, {_line(node)}", f"{shown(path)} is outside environment/")
                return "", "", "", {}
        inline = self._text(table, "dockerfile_inline") or ""
        arguments = self._variables(table.get("args"), f"{key}.args")
        for name, value in arguments.items():
            if TEMPLATE.fullmatch(value):
                self._refuse(table["args"], f"{key}.args.{name}", "is a variable of whoever builds it")
        return "" if context == "." else context, dockerfile, inline, arguments

    def _variables(self, node: yaml.Node | None, key: str) -> Mapping[str, str]:
        """Read a table, or a list of NAME=value; a name alone is taken from whoever runs it."""
        given = self._value(node)
        pairs: list[tuple[str, Any]] = []
        if isinstance(given, Mapping):
            pairs = list(given.items())
        elif isinstance(given, list):
            pairs = [
                (name, value if gap else None) for name, gap, value in (str(each).partition("=") for each in given)
            ]
        elif given is not None:
            self._report.error(self._file, f"{key}, {_line(node)}", f"expected a table or a list, got {shown(given)}")
        found = {}
        for name, value in pairs:
            text = f"${{{name}:-}}" if value is None else str(value).lower() if value in (True, False) else str(value)
            plain = text.replace("$$", "")
            if "$" in plain and not TEMPLATE.fullmatch(text):
                self._report.error(
                    self._file, f"{key}.{name}, {_line(node)}", f"{shown(text)}: only a whole value may be a variable's"
                )
                continue
            found[str(name)] = text.replace("$$", "$")
        return found

    def _text(self, table: Mapping[str, yaml.Node], key: str) -> str | None:
        node = table.get(key)
        value = self._value(node)
        if _HARBORS.fullmatch(str(value)):
            return None
        if value is None or (isinstance(value, str | int) and "${" not in str(value)):
            return None if value is None else str(value)
        self._report.error(self._file, f"{key}, {_line(node)}", f"expected plain text, got {shown(value)}")
        return None

    def _number(self, node: yaml.Node | None, other: Any) -> float | None:
        value = other if node is None else self._value(node)
        try:
            return None if value is None or float(value) <= 0 else float(value)
        except (TypeError, ValueError):
            return None

    @staticmethod
    def _megabytes(value: Any) -> float | None:
        found = _SIZE.fullmatch(str(value)) if value is not None else None
        return float(found[1]) * _MEGABYTES[found[2].lower()] if found else None

    def _table(self, node: yaml.Node | None, key: str) -> Mapping[str, yaml.Node]:
        """Return the nodes of a table by their names, merged ones included."""
        if node is None or self._value(node) is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            self._report.error(self._file, ", ".join(filter(None, (key, _line(node)))), "expected a table")
            return {}
        self._loader.flatten_mapping(node)
        return {str(self._value(name)): value for name, value in node.value}

    def _values(self, node: yaml.Node | None) -> Mapping[str, Any]:
        value = self._value(node)
        return value if isinstance(value, Mapping) else {}

    def _value(self, node: yaml.Node | None) -> Any:
        return None if node is None else self._loader.construct_object(node, deep=True)

    def _refuse(self, node: yaml.Node, key: str, why: str = "changes the devbox") -> None:
        self._report.error(
            self._file, f"{key}, {_line(node)}", f"{why}: it needs a container engine", Requirement.ENGINE
        )

    def _note(self, node: yaml.Node, key: str) -> None:
        self._say(f"services.{MAIN}.{key}, {_line(node)}", _NOTED[key])

    def _say(self, key: str, why: str) -> None:
        self._report.warn(self._file, key, why)
        self._notes.append(f"{self._file}: {key}: {why}")


def _copied(volume: Any) -> tuple[str, str] | None:
    """Return from where to where a volume shows something of the environment's own folder; None if it does not."""
    if isinstance(volume, Mapping):
        source, target = volume.get("source"), volume.get("target")
        is_bind = volume.get("type") == "bind"
    else:
        source, target, *_ = (*str(volume).split(":"), None)
        is_bind = True
    if not is_bind or not str(source).startswith("./") or not str(target).startswith("/"):
        return None
    source = posixpath.normpath(str(source))
    return None if source.startswith("..") else (source, str(target))


def _is_own(volume: Any) -> bool:
    """Tell whether a volume is none of the host's folders: one with a name, without one, or that of logs."""
    if isinstance(volume, Mapping):
        return volume.get("type") in {"volume", "tmpfs"}
    return bool(_LOGS.match(str(volume))) or ":" not in str(volume) or re.match(r"[\w-]+:", str(volume)) is not None


def _line(node: yaml.Node | None) -> str:
    return "" if node is None else f"line {node.start_mark.line + 1}"
