"""Launch parameters of a devbox: checked, completed, and turned into what the fleet needs of them.

They are kept as they were sent; what this service cannot do is refused by name, so that nobody learns in the morning
that a parameter was ignored. Rules and limits are those of the published API.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field, ValidationError

from orchestrator.service.errors import BadRequest
from orchestrator.service.sandbox.provider import GIB, Resources
from orchestrator.service.serialization import Body
from orchestrator.service.store import Document

KEEP_ALIVE: Final = 3600
MAX_KEEP_ALIVE: Final = 172_800
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


class _Idle(Body):
    idle_time_seconds: int = Field(ge=1, le=MAX_KEEP_ALIVE)
    on_idle: Literal["shutdown", "suspend"]


class _Lifecycle(Body):
    after_idle: _Idle | None = None


class _User(Body):
    username: str
    uid: int


class _Parameters(Body):
    model_config = ConfigDict(defer_build=False)  # the first use of a deferred one must not be in two threads at once

    keep_alive_time_seconds: int | None = Field(None, ge=1, le=MAX_KEEP_ALIVE)
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
    """What launch parameters mean.

    `keep_alive` seconds after its start the devbox ends; with `idle`, that many seconds after its last use instead.
    `resources` is None when nothing was asked for. `shown` are the parameters as sent, with the defaults filled in.
    """

    keep_alive: int
    idle: int | None
    resources: Resources | None
    commands: tuple[str, ...]
    shown: Document


def parse_launch(parameters: Mapping[str, Any] | None) -> Launch:
    """Check launch parameters as they were sent. Raises BadRequest naming each key that is wrong."""
    sent = {key: value for key, value in (parameters or {}).items() if value is not None}
    parsed = _parse(sent)
    idle = _idle(parsed)
    return Launch(
        keep_alive=parsed.keep_alive_time_seconds or KEEP_ALIVE,
        idle=idle.idle_time_seconds if idle else None,
        resources=_resources(parsed),
        commands=tuple(parsed.launch_commands or ()),
        shown={"keep_alive_time_seconds": KEEP_ALIVE} | sent,
    )


def check_launch(parameters: Mapping[str, Any]) -> None:
    """Raise BadRequest for launch parameters that are wrong whatever others they will be merged with."""
    _parse({key: value for key, value in parameters.items() if value is not None})


def _parse(sent: Mapping[str, Any]) -> _Parameters:
    try:
        parsed = _Parameters.model_validate(sent)
    except ValidationError as error:
        raise BadRequest("; ".join(f"{_name(*e['loc'])}: {e['msg']}" for e in error.errors()) + ".") from None
    _refuse_unsupported(parsed)
    return parsed


def _name(*parts: object) -> str:
    return ".".join(["launch_parameters", *map(str, parts)])


def _refuse_unsupported(parsed: _Parameters) -> None:
    for number, command in enumerate(parsed.launch_commands or ()):
        if "\0" in command:
            raise BadRequest(f"{_name('launch_commands', number)}: a command cannot hold a NUL character.")
    if parsed.required_services:
        raise BadRequest(f"{_name('required_services')}: not supported by this service.")
    if parsed.user_parameters and parsed.user_parameters.username != "user":
        raise BadRequest(f"{_name('user_parameters')}: not supported by this service, whose user is 'user'.")
    here = _ARCHITECTURES.get(platform.machine().lower(), platform.machine())
    if parsed.architecture and parsed.architecture != here:
        raise BadRequest(
            f"{_name('architecture')}: this service runs devboxes on {here}, not on {parsed.architecture!r}."
        )


def _idle(parsed: _Parameters) -> _Idle | None:
    """Both places of the setting must agree, says the published API; suspending is beyond every provider here."""
    nested = parsed.lifecycle.after_idle if parsed.lifecycle else None
    if parsed.after_idle and nested and parsed.after_idle != nested:
        raise BadRequest(f"{_name('after_idle')}: differs from lifecycle.after_idle; give one of them.")
    idle = nested or parsed.after_idle
    if idle and idle.on_idle == "suspend":
        raise BadRequest(f"{_name('after_idle.on_idle')}: 'suspend' is not supported by this service; use 'shutdown'.")
    return idle


def _resources(parsed: _Parameters) -> Resources | None:
    size = parsed.resource_size_request
    custom = [key for key in ("custom_cpu_cores", "custom_gb_memory", "custom_disk_size") if getattr(parsed, key)]
    if size == CUSTOM:
        return _custom(parsed)
    if custom:
        raise BadRequest(f"{_name(custom[0])}: only used with resource_size_request {CUSTOM!r}; add it or drop this.")
    if size is not None and size not in SIZES:
        known = ", ".join([*SIZES, CUSTOM])
        raise BadRequest(f"{_name('resource_size_request')}: unknown size {size!r}; expected one of {known}.")
    return SIZES[size] if size else None


def _custom(parsed: _Parameters) -> Resources:
    cpus, memory, disk = parsed.custom_cpu_cores, parsed.custom_gb_memory, parsed.custom_disk_size
    if cpus is None or memory is None:
        raise BadRequest(f"{_name('resource_size_request')}: {CUSTOM} needs custom_cpu_cores and custom_gb_memory.")
    if cpus not in {0.5, 1} and not (cpus % 2 == 0 and 2 <= cpus <= 16):
        raise BadRequest(f"{_name('custom_cpu_cores')}: expected 0.5, 1 or a multiple of 2 up to 16, got {cpus:g}.")
    if memory != 1 and not (memory % 2 == 0 and 2 <= memory <= 64):
        raise BadRequest(f"{_name('custom_gb_memory')}: expected 1 or a multiple of 2 up to 64, got {memory}.")
    if not 2 * cpus <= memory <= 8 * cpus:
        raise BadRequest(f"{_name('custom_gb_memory')}: expected 2 to 8 GiB for each core, got {memory} for {cpus:g}.")
    if disk is not None and not (disk % 2 == 0 and 2 <= disk <= 64):
        raise BadRequest(f"{_name('custom_disk_size')}: expected a multiple of 2 from 2 to 64, got {disk}.")
    default = Resources()
    return Resources(cpus=cpus, memory=memory * GIB, disk=disk * GIB if disk else default.disk)
