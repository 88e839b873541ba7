"""Requests for devboxes, by a client itself or for a scenario run: checked, and their launch parameters completed.

Launch parameters are kept as they were sent; those that this service cannot honour are refused by name, because an
ignored one would be found out in the morning. Rules and limits are those of the published API.
"""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.service.environments.installs import MOUNT, InstallRequest
from orchestrator.service.errors import BadRequest
from orchestrator.service.sandbox.provider import GIB, Resources

KEEP_ALIVE_S: Final = 3600
MAX_KEEP_ALIVE_S: Final = 172_800
SIZES: Final[Mapping[str, Resources]] = {
    "X_SMALL": Resources(cpus=0.5, memory=1 * GIB, disk=4 * GIB),
    "SMALL": Resources(cpus=1, memory=2 * GIB, disk=4 * GIB),
    "MEDIUM": Resources(cpus=2, memory=4 * GIB, disk=8 * GIB),
    "LARGE": Resources(cpus=2, memory=8 * GIB, disk=16 * GIB),
    "X_LARGE": Resources(cpus=4, memory=16 * GIB, disk=16 * GIB),
    "XX_LARGE": Resources(cpus=8, memory=32 * GIB, disk=16 * GIB),
}
CUSTOM: Final = "CUSTOM_SIZE"
_ARCHITECTURES: Final = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DevboxRequest:
    """A request for a devbox; `launch_parameters` as sent, `file_mounts` from path to contents.

    `scenario_policy_id` is the network policy of the scenario, which that in the launch parameters may add to.
    """

    name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    environment_variables: Mapping[str, str] = field(default_factory=dict)
    blueprint_id: str | None = None
    blueprint_name: str | None = None
    snapshot_id: str | None = None
    launch_parameters: Mapping[str, Any] = field(default_factory=dict)
    scenario_policy_id: str | None = None
    file_mounts: Mapping[str, str] = field(default_factory=dict)
    install: InstallRequest | None = None
    initiator_type: str = "api"
    initiator_id: str | None = None


def check_variables(key: str, variables: Mapping[str, str]) -> None:
    """Raise BadRequest naming the first environment variable that no process could be given; `key` is where it was."""
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name + value:
            raise BadRequest(f"{key}: variable {name!r} cannot be set; a name has no '=', and nothing has a NUL.")


def check_paths(key: str, paths: Iterable[str]) -> None:
    """Raise BadRequest naming the first path that no file could have."""
    for path in paths:
        if not path or "\0" in path:
            raise BadRequest(f"{key}: expected the path of a file, got {path!r}.")


def mounted_files(key: str, mounts: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return path to contents. Raises BadRequest for mounts of an unknown type, and for one without a target."""
    files: dict[str, str] = {}
    for number, mount in enumerate(mounts):
        if mount.get("type") == MOUNT:
            continue
        if mount.get("type") != "file_mount":
            raise BadRequest(f"{key}.{number}: {mount.get('type')!r} is not supported by this service; use file_mount.")
        target, content = mount.get("target"), mount.get("content") or ""
        if not isinstance(target, str) or not target or not isinstance(content, str):
            raise BadRequest(f"{key}.{number}: a file_mount needs target and content, both texts.")
        check_paths(f"{key}.{number}.target", [target])
        files[target] = content
    return files


def mounted_install(key: str, mounts: Iterable[Mapping[str, Any]]) -> InstallRequest | None:
    """Return the install among mounts. Raises BadRequest for one that is not whole, and for a second one."""
    found = [(number, mount) for number, mount in enumerate(mounts) if mount.get("type") == MOUNT]
    if len(found) > 1:
        raise BadRequest(f"{key}.{found[1][0]}: a devbox has one {MOUNT}.")
    return InstallRequest.read(f"{key}.{found[0][0]}", found[0][1]) if found else None


class _Parameters(BaseModel):
    """Launch parameters; unknown ones are kept, and not looked at."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Idle(_Parameters):
    idle_time_seconds: int = Field(ge=1, le=MAX_KEEP_ALIVE_S)
    on_idle: Literal["shutdown", "suspend"]


class _Lifecycle(_Parameters):
    after_idle: _Idle | None = None


class _User(_Parameters):
    username: str
    uid: int


class _Launch(_Parameters):
    keep_alive_time_seconds: int | None = Field(None, ge=1, le=MAX_KEEP_ALIVE_S)
    after_idle: _Idle | None = None
    lifecycle: _Lifecycle | None = None
    launch_commands: list[str] | None = None
    resource_size_request: str | None = None
    custom_cpu_cores: float | None = None
    custom_gb_memory: int | None = None
    custom_disk_size: int | None = None
    architecture: str | None = None
    user_parameters: _User | None = None
    required_services: list[str] | None = None
    network_policy_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Launch parameters as the fleet needs them.

    `keep_alive` seconds after its start the devbox ends; with `idle`, that many seconds after its last use instead, or
    it is suspended then, if it `suspends`. `resources` is None when nothing was asked for. `shown` are the parameters
    as sent, with the defaults filled in.
    """

    keep_alive: int
    idle: int | None
    suspends: bool
    resources: Resources | None
    commands: tuple[str, ...]
    shown: Mapping[str, Any]


def parse_launch(parameters: Mapping[str, Any] | None) -> Launch:
    """Check launch parameters as they were sent. Raises BadRequest naming each key that is wrong."""
    sent = {key: value for key, value in (parameters or {}).items() if value is not None}
    parsed = _parse(sent)

    # The published API wants both places of the setting to agree.
    nested = parsed.lifecycle.after_idle if parsed.lifecycle else None
    if parsed.after_idle and nested and parsed.after_idle != nested:
        raise BadRequest(f"{_key('after_idle')}: differs from lifecycle.after_idle; give one of them.")
    idle = nested or parsed.after_idle

    return Launch(
        keep_alive=parsed.keep_alive_time_seconds or KEEP_ALIVE_S,
        idle=idle.idle_time_seconds if idle else None,
        suspends=idle is not None and idle.on_idle == "suspend",
        resources=_resources(parsed),
        commands=tuple(parsed.launch_commands or ()),
        shown={"keep_alive_time_seconds": KEEP_ALIVE_S} | sent,
    )


def check_launch(parameters: Mapping[str, Any]) -> None:
    """Raise BadRequest for launch parameters that are wrong whatever others they will be merged with."""
    _parse({key: value for key, value in parameters.items() if value is not None})


def _key(*parts: object) -> str:
    return ".".join(["launch_parameters", *map(str, parts)])


def _parse(sent: Mapping[str, Any]) -> _Launch:
    try:
        parsed = _Launch.model_validate(sent)
    except ValidationError as error:
        raise BadRequest("; ".join(f"{_key(*e['loc'])}: {e['msg']}" for e in error.errors()) + ".") from None
    for number, command in enumerate(parsed.launch_commands or ()):
        if "\0" in command:
            raise BadRequest(f"{_key('launch_commands', number)}: a command cannot hold a NUL character.")
    if parsed.required_services:
        raise BadRequest(f"{_key('required_services')}: not supported by this service.")
    if parsed.user_parameters and parsed.user_parameters.username != "user":
        raise BadRequest(f"{_key('user_parameters')}: not supported by this service, whose user is 'user'.")
    here = _ARCHITECTURES.get(platform.machine().lower(), platform.machine())
    if parsed.architecture and parsed.architecture != here:
        raise BadRequest(
            f"{_key('architecture')}: this service runs devboxes on {here}, not on {parsed.architecture!r}."
        )
    return parsed


def _resources(parsed: _Launch) -> Resources | None:
    size = parsed.resource_size_request
    custom = [key for key in ("custom_cpu_cores", "custom_gb_memory", "custom_disk_size") if getattr(parsed, key)]
    if size != CUSTOM:
        if custom:
            wrong = _key(custom[0])
            raise BadRequest(f"{wrong}: only used with resource_size_request {CUSTOM!r}; add it or drop this.")
        if size is not None and size not in SIZES:
            known = ", ".join([*SIZES, CUSTOM])
            raise BadRequest(f"{_key('resource_size_request')}: unknown size {size!r}; expected one of {known}.")
        return None if size is None else SIZES[size]

    cpus, memory, disk = parsed.custom_cpu_cores, parsed.custom_gb_memory, parsed.custom_disk_size
    if cpus is None or memory is None:
        raise BadRequest(f"{_key('resource_size_request')}: {CUSTOM} needs custom_cpu_cores and custom_gb_memory.")
    if cpus not in {0.5, 1} and not (cpus % 2 == 0 and 2 <= cpus <= 16):
        raise BadRequest(f"{_key('custom_cpu_cores')}: expected 0.5, 1 or a multiple of 2 up to 16, got {cpus:g}.")
    if memory != 1 and not (memory % 2 == 0 and 2 <= memory <= 64):
        raise BadRequest(f"{_key('custom_gb_memory')}: expected 1 or a multiple of 2 up to 64, got {memory}.")
    if not 2 * cpus <= memory <= 8 * cpus:
        raise BadRequest(f"{_key('custom_gb_memory')}: expected 2 to 8 GiB for each core, got {memory} for {cpus:g}.")
    if disk is not None and not (disk % 2 == 0 and 2 <= disk <= 64):
        raise BadRequest(f"{_key('custom_disk_size')}: expected a multiple of 2 from 2 to 64, got {disk}.")
    return Resources(cpus=cpus, memory=memory * GIB, disk=disk * GIB if disk else Resources().disk)
