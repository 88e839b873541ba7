"""What a devbox is asked to be, whoever asks: a client itself, or a scenario run. Launch parameters are in `launch`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.service.environments.installs.request import MOUNT, InstallRequest
from orchestrator.service.errors import BadRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class DevboxRequest:
    """What a devbox is asked to be; `launch_parameters` as sent, `file_mounts` from path to contents.

    `scenario_policy_id` is the network policy of the scenario, which that in the launch parameters may add to.
    """

    name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    environment_variables: Mapping[str, str] = field(default_factory=dict)
    blueprint_id: str | None = None
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
    """Path to contents. Raises BadRequest for mounts that nobody reads, and for one without a target."""
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
    """The install among mounts. Raises BadRequest for one that is not whole, and for a second one."""
    found = [(number, mount) for number, mount in enumerate(mounts) if mount.get("type") == MOUNT]
    if len(found) > 1:
        raise BadRequest(f"{key}.{found[1][0]}: a devbox has one {MOUNT}.")
    return InstallRequest.read(f"{key}.{found[0][0]}", found[0][1]) if found else None
