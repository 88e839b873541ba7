"""`sweep doctor` tries this machine as it is, names what is missing with its command, and leaves nothing behind."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from anyio.to_thread import run_sync

from orchestrator.commands.doctor import State
from orchestrator.common import sweep_command
from tests.ordinary_user import OrdinaryUser
from tests.service.images.registry_server import FakeRegistry, served

pytestmark = pytest.mark.root
CHECKS = (
    *("bubblewrap", "sandboxes", "limits", "internet", "users of images", "layers of images", "layers of devboxes"),
    *(
        "programs for images",
        "disks of devboxes",
        "git",
        "room for images",
        "room for runs",
        "container engines",
        "open files",
    ),
)
Found = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine as the command sees it from the folder `place`, started by the words `within`."""

    place: Path

    def examine(self, *words: str, within: Sequence[str] = (), status: int = 0, **environment: str) -> Found:
        command = [*within, *sweep_command(), "doctor", "--json", *words]
        env = {**os.environ, "SWEEP_CACHE": str(self.place / "cache"), **environment}
        ended = subprocess.run(command, cwd=self.place, env=env, capture_output=True, text=True, check=False)
        assert ended.returncode == status, ended
        assert "Traceback" not in ended.stderr
        return {each["check"]: each for each in map(orjson.loads, ended.stdout.splitlines())}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_of_roots_has_devboxes_and_nothing_stays(machine: Machine) -> None:
    found = machine.examine("--offline")
    assert tuple(found) == CHECKS
    assert {each["state"] for each in found.values()} <= set(State)
    assert [found[check]["state"] for check in ("sandboxes", "users of images", "layers of devboxes")] == ["ok"] * 3
    assert found["disks of devboxes"]["state"] == "ok"
    assert list(machine.place.iterdir()) == []
    assert str(machine.place) not in Path("/proc/self/mountinfo").read_text()


def test_what_is_not_ok_has_its_command_below_it(machine: Machine) -> None:
    tools = machine.place / "tools"
    tools.mkdir()
    for name in ("bwrap", "sh", "ldd", "bash"):
        if program := shutil.which(name):
            (tools / name).symlink_to(program)
    words = ["bash", "-c", 'ulimit -n 200; exec "$@"', "bash", *sweep_command(), "doctor", "--offline"]
    env = {**os.environ, "PATH": str(tools), "SWEEP_CACHE": str(machine.place / "cache")}
    ended = subprocess.run(
        [shutil.which("bash") or "bash", *words[1:]],
        cwd=machine.place,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = ended.stdout.splitlines()
    for start, fix in (("limited  git: it is not here", "install git"), ("limited  open files", "ulimit -n")):
        (at,) = [number for number, line in enumerate(lines) if line.startswith(start)]
        assert lines[at + 1].startswith("         fix: ")
        assert fix in lines[at + 1]
    assert lines[-1] == "Devboxes can be had here."


def test_without_user_namespaces_there_are_no_devboxes_and_the_setting_is_named(machine: Machine) -> None:
    """The kernel counts namespaces for each user namespace by itself, so that one of ours can be the strict machine."""
    strict = ["unshare", "-Ur", "sh", "-c", 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"', "sh"]
    found = machine.examine("--offline", within=strict, status=1)
    assert found["sandboxes"]["state"] == "missing"
    assert found["sandboxes"]["fix"] == "sysctl -w user.max_user_namespaces=65536"
    assert "--isolation none" in found["sandboxes"]["follows"]
    assert found["layers of images"]["state"] == "missing"


@pytest.mark.parametrize("is_lent_ids", [True, False])
def test_an_ordinary_user_learns_which_users_his_images_have(*, is_lent_ids: bool) -> None:
    """In his own folders an overlay can be mounted either way."""
    with OrdinaryUser.make(is_lent_ids=is_lent_ids) as user:
        ended = user.run([*sweep_command(), "doctor", "--offline", "--json"], timeout=120)
        assert ended.returncode == 0, ended
        found = {each["check"]: each for each in map(orjson.loads, ended.stdout.splitlines())}
        assert list(user.home.iterdir()) == []
    assert [found[check]["state"] for check in ("sandboxes", "layers of images", "layers of devboxes")] == ["ok"] * 3
    assert found["disks of devboxes"]["state"] == "limited"
    assert "start as root" in found["disks of devboxes"]["fix"]
    users = found["users of images"]
    if is_lent_ids:
        assert (users["state"], users["found"]) == ("ok", "one range of 65,536 ids")
    else:
        assert users["state"] == "limited"
        assert re.search(r"usermod --add-subuids (\d+)-\d+ --add-subgids \1-\d+ ordinary$", users["fix"])


@pytest.mark.parametrize(("which", "check"), [("runs", "layers of devboxes"), ("cache", "layers of images")])
def test_a_folder_on_an_overlay_is_named_as_what_keeps_images_away(machine: Machine, which: str, check: str) -> None:
    for name in ("lower", "upper", "work", which):
        (machine.place / name).mkdir(mode=0o700)
    mount = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work"
    inside = ["unshare", "-m", "sh", "-c", f'{mount} {which} && exec "$@"', "sh"]
    found = machine.examine("--offline", "--runs", str(machine.place / "runs"), within=inside)
    assert found[check]["state"] == "missing"
    assert found[check]["found"].endswith(f"take a volume or a tmpfs for {machine.place / which}")
    assert "volume" in found[check]["fix"]


@pytest.mark.anyio
async def test_a_registry_counts_if_its_mirror_answers(machine: Machine) -> None:
    async with served(FakeRegistry()) as registry:
        found = await run_sync(lambda: machine.examine("--registry-mirror", f"docker.io={registry.url}"))
    assert found["registry docker.io"]["state"] == "ok"
    assert f"{registry.url} answers" in found["registry docker.io"]["found"]
