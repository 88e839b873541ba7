"""Scenarios whose verifier runs apart, in an environment of its own, and what reaches it."""

from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.conftest import CLOSED, reward, write_scenario
from tests.e2e.test_steps import write_steps
from tests.images.base_images import base_image
from tests.images.packing import PackedImage

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Desk

pytestmark = pytest.mark.root

IMAGE: Final = "FROM busybox\nWORKDIR /srv\n"
OWN: Final = f"""
artifacts = ["/srv/out", {{ source = "/srv/more", exclude = ["*.log"] }}]
{CLOSED}
[verifier.environment]
allow_internet = false
cpus = 0.5
memory = "512M"
env = {{ LEVEL = "${{NOT_GIVEN:-three}}" }}
healthcheck = {{ command = "touch /tmp/ready" }}
"""


def _with_image(folder: "Path", image: str = IMAGE) -> "Path":
    (folder / "environment/Dockerfile").write_text(image)
    return folder


def test_a_verifier_has_the_environment_network_and_users_that_it_asks_for(desk: "Desk") -> None:
    """`image` has one of its own, built in tests/; `sizes` has the scenario's anew; `network` has another network.

    Each of the `steps` has another verifier.
    """
    if desk.isolation == "none":
        pytest.skip("images need devboxes with walls")
    PackedImage.of(base_image("busybox")).save(desk.folder / "busybox.tar", "busybox:latest")
    cache = {"SWEEP_CACHE": str(desk.folder / "cache")}
    desk.sweep("images", "load", "busybox.tar", environment=cache)

    seen = "grep -q good /srv/out && test -e /srv/more/kept && test ! -e /srv/more/a.log"
    alone = "test ! -e /srv/secret && test ! -e /solution/solve.sh && test -e /tmp/ready && test $LEVEL = three"
    image = _with_image(
        write_scenario(
            desk.folder / "mine" / "image",
            solution="mkdir more; touch secret more/kept more/a.log; echo good >out\n",
            test=reward(f'{seen} && {alone} && test "$PWD" = /work && test "$(id -u)" = 33'),
        )
    )
    (image / "task.toml").write_text(f"{OWN}workdir = '/work'\n")
    (image / "tests/Dockerfile").write_text("FROM busybox\nCOPY . /tests/\nRUN mkdir /work\nUSER www-data\n")
    (image / "tests/test.sh").chmod(0o644)

    collect = '[[verifier.collect]]\ncommand = "[ ! -e done ] || id -u >/logs/artifacts/who"\nuser = "www-data"\n'
    _with_image(
        write_scenario(
            desk.folder / "mine" / "sizes",
            task=f"{CLOSED}[verifier.environment]\nallow_internet = false\nstorage_mb = 512\n{collect}",
            solution="chmod 777 /logs/artifacts; touch done\n",
            test=reward('test "$(cat /logs/artifacts/who)" = 33 && test ! -e done && test -z "$http_proxy"'),
        )
    )
    allowed = 'network_mode = "allowlist"\nallowed_hosts = ["localhost:9"]\n'
    _with_image(
        write_scenario(
            desk.folder / "mine" / "network",
            task=f"{CLOSED}[verifier]\n{allowed}",
            solution='test -z "$http_proxy" && touch done\n',
            test=reward('test -e done && test -n "$http_proxy"'),
        )
    )
    own = (
        '[[steps]]\nname = "who"\nverifier.user = "www-data"\n'
        f'[[steps]]\nname = "where"\n[steps.verifier]\nenvironment_mode = "separate"\n{allowed}'
        '[[steps]]\nname = "built"\nverifier.environment = { allow_internet = false, workdir = "/work" }\n'
    )
    tests = {
        "who": 'test -e who && test "$(id -u)" = 33 && test -z "$http_proxy"',
        "where": 'test -e where && test "$(id -u)" = 0 && test -n "$http_proxy"',
        "built": 'test ! -e /srv/who && test "$PWD $(id -u)" = "/work 33" && grep -q built /logs/artifacts/step',
    }
    files = {f"steps/{name}/tests/test.sh": reward(condition) for name, condition in tests.items()}
    solve = "touch {0}; echo {0} >/logs/artifacts/step\n"
    files |= {f"steps/{name}/solution/solve.sh": solve.format(name) for name in tests}
    files |= {
        "environment/Dockerfile": IMAGE,
        "steps/built/tests/Dockerfile": "FROM busybox\nCOPY . /tests/\nUSER www-data\n",
    }
    write_steps(desk.folder / "mine" / "steps", f"{CLOSED}{own}", files)
    prepared = desk.sweep("prepare", "./mine", "--json", environment=cache)
    assert sorted(each["scenarios"] for each in prepared.json) == [
        ["image"],
        ["image", "network", "sizes"],
        ["sizes"],
        ["steps"],
        ["steps"],
    ]
    ended = desk.sweep("check", "./mine", environment=cache)
    assert ended.out.splitlines()[-1] == "mine: sound"
