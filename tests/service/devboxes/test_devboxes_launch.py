"""Launch parameters: what they mean and what is refused."""

import platform
from typing import Any

import pytest
from msgspec.structs import replace

from orchestrator.core.errors import InternalError
from orchestrator.core.protocol import DEVBOX_DEAD, DevboxStatus
from orchestrator.service.devboxes.requests import SIZES, DevboxRequest, check_launch, parse_launch
from orchestrator.service.devboxes.states import MOVES, failure_reason, moved, new_devbox
from orchestrator.service.errors import BadRequest
from orchestrator.service.records import DevboxRecord
from orchestrator.service.sandbox.provider import GIB, Resources


def test_the_default_launch_is_an_hour_without_a_size() -> None:
    launch = parse_launch(None)
    assert (launch.keep_alive, launch.idle, launch.resources, launch.commands) == (3600, None, None, ())


def test_sizes_are_those_of_the_published_api() -> None:
    sizes = {name: (size.cpus, size.memory // GIB, size.disk // GIB) for name, size in SIZES.items()}
    assert sizes == {
        "X_SMALL": (0.5, 1, 4),
        "SMALL": (1, 2, 4),
        "MEDIUM": (2, 4, 8),
        "LARGE": (2, 8, 16),
        "X_LARGE": (4, 16, 16),
        "XX_LARGE": (8, 32, 16),
    }
    assert parse_launch({"resource_size_request": "LARGE"}).resources == SIZES["LARGE"]


def custom(**sizes: Any) -> dict[str, Any]:
    return {"resource_size_request": "CUSTOM_SIZE", **{f"custom_{name}": size for name, size in sizes.items()}}


def test_a_custom_size_is_taken_as_it_is() -> None:
    launch = parse_launch(custom(cpu_cores=0.5, gb_memory=4, disk_size=64))
    assert launch.resources == Resources(cpus=0.5, memory=4 * GIB, disk=64 * GIB)


@pytest.mark.parametrize("place", ["after_idle", "lifecycle"])
def test_idle_settings_are_read_from_either_place(place: str) -> None:
    idle = {"idle_time_seconds": 7, "on_idle": "shutdown"}
    assert parse_launch({place: idle if place == "after_idle" else {"after_idle": idle}}).idle == 7


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"keep_alive_time_seconds": 0}, "keep_alive_time_seconds"),
        ({"keep_alive_time_seconds": 172_801}, "keep_alive_time_seconds"),
        ({"launch_commands": "ls"}, "launch_commands"),
        ({"launch_commands": ["ls", "a\0b"]}, r"launch_commands\.1: a command cannot hold a NUL"),
        ({"resource_size_request": "TINY"}, "unknown size 'TINY'"),
        ({"custom_cpu_cores": 2}, "only used with resource_size_request 'CUSTOM_SIZE'"),
        (custom(cpu_cores=2), "needs custom_cpu_cores and custom_gb_memory"),
        (custom(cpu_cores=3, gb_memory=8), "custom_cpu_cores: expected"),
        (custom(cpu_cores=2, gb_memory=3), "custom_gb_memory: expected 1 or a multiple of 2"),
        (custom(cpu_cores=2, gb_memory=32), "expected 2 to 8 GiB for each core"),
        (custom(cpu_cores=2, gb_memory=4, disk_size=3), "custom_disk_size"),
        ({"after_idle": {"idle_time_seconds": 5, "on_idle": "sleep"}}, "after_idle.on_idle"),
        (
            {
                "after_idle": {"idle_time_seconds": 5, "on_idle": "shutdown"},
                "lifecycle": {"after_idle": {"idle_time_seconds": 6, "on_idle": "shutdown"}},
            },
            "differs from lifecycle.after_idle",
        ),
        ({"architecture": "s390x"}, f"not on 's390x'|runs devboxes on {platform.machine()}"),
        ({"user_parameters": {"username": "root", "uid": 0}}, "whose user is 'user'"),
        ({"required_services": ["postgres"]}, "required_services: not supported"),
    ],
)
def test_wrong_or_unsupported_launch_parameters_are_refused_by_name(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        parse_launch(parameters)


def test_a_run_profile_may_leave_open_what_a_scenario_completes() -> None:
    check_launch({"custom_cpu_cores": 2, "custom_gb_memory": 4})
    with pytest.raises(BadRequest, match="keep_alive_time_seconds"):
        check_launch({"keep_alive_time_seconds": -1})


def test_a_null_is_as_good_as_nothing() -> None:
    assert parse_launch({"network_policy_id": None, "after_idle": None, "required_services": []}).keep_alive == 3600


def devbox_that_is(status: DevboxStatus) -> DevboxRecord:
    return replace(new_devbox(DevboxRequest(), parse_launch(None)), status=status)


@pytest.mark.parametrize("status", list(DevboxStatus))
@pytest.mark.parametrize("current", list(DevboxStatus))
def test_an_illegal_move_is_refused_and_changes_nothing(current: DevboxStatus, status: DevboxStatus) -> None:
    devbox = devbox_that_is(current)
    if status in MOVES.get(current, ()):
        last = moved(devbox, status, at=5).state_transitions[-1]
        assert (last.status, last.transition_time_ms) == (status, 5)
    else:
        with pytest.raises(InternalError, match=f"cannot go from {current.value} to {status.value}"):
            moved(devbox, status, at=5)
    assert devbox.status is current


def test_an_ended_devbox_stays_ended() -> None:
    assert [status for status in DevboxStatus if devbox_that_is(status).is_ended] == sorted(DEVBOX_DEAD)
    assert not DEVBOX_DEAD & MOVES.keys()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("out of memory", "out_of_memory"),
        ("out of disk: 5 bytes used, 4 allowed", "out_of_disk"),
        ("devbox x: [Errno 28] No space left on device", "out_of_disk"),
        ("killed by signal 9", "health_check_failed"),
        ("there was no room for it", "health_check_failed"),
    ],
)
def test_a_death_is_reported_in_the_published_words(how: str, reason: str) -> None:
    assert failure_reason(how) == reason
