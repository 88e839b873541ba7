"""`docker/` for real: built and run by an engine of the test's own, with no more privileges than compose.yaml asks for.

The engine has no network to give: builds have this machine's, the service and its sweep share a loopback. Skipped where
no engine is (Debian's docker.io). Its base image is a Debian of base_images with the tests' own Python.
"""

import ensurepip
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import pytest

from orchestrator import __version__
from orchestrator.service.sandbox import elf
from tests.container_engine import dockerd
from tests.images.base_images import base_image
from tests.images.packing import PackedImage
from tests.real.conftest import is_answered
from tests.waiting import wait_until

from .conftest import CLOSED, ROOT, reward, write_scenario
from .test_scripts import compose_services, instructions, words_of

pytestmark = [pytest.mark.slow, pytest.mark.root]
IMAGE: Final = "sweep"
CERTIFICATES: Final = "etc/ssl/certs/ca-certificates.crt"
TOKEN: Final = "0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Engine:
    """A running dockerd; its socket is in the folder `place`."""

    place: Path

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        command = ["docker", "--host", f"unix://{self.place}/socket", *words]
        environment = {**os.environ, "DOCKER_CONFIG": str(self.place), "DOCKER_BUILDKIT": "0"}
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def __call__(self, *words: str) -> str:
        """Run a command of docker's, and return what it prints."""
        with self.start(*words) as process:
            out = process.communicate()[0].decode(errors="replace")
        assert process.returncode == 0, f"docker {' '.join(words)}\n{out[-4000:]}"
        return out

    def does(self, *words: str) -> bool:
        """Run a command of docker's, and tell if it succeeds."""
        with self.start(*words) as process:
            process.communicate()
        return process.returncode == 0

    def sweep(self, *words: str, options: Sequence[str]) -> str:
        return self("run", "--rm", *options, IMAGE, *words)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with dockerd() as socket:
        yield Engine(socket.parent)


@pytest.fixture
def image(engine: Engine) -> None:
    """Build the image on a base of this machine's."""
    if not is_answered(sys.executable, "-m", "pip", "index", "versions", "hatchling"):
        pytest.skip("no package index can be reached")
    (base,) = {words.split()[0] for name, words in instructions() if name == "FROM"}
    (debian,) = base_image("debian").layers
    engine("import", str(debian.blob), "debian")
    python = engine.place / "python"
    lay_out_python(python)
    variables = {name: os.environ[name] for name in ("PIP_INDEX_URL",) if name in os.environ}
    variables["PIP_CERT"] = f"/{CERTIFICATES}"
    lines = ["FROM debian", "COPY . /", *(f"ENV {name}={value}" for name, value in variables.items())]
    (engine.place / "Dockerfile").write_text("\n".join(lines))
    engine("build", "--file", str(engine.place / "Dockerfile"), "--tag", base, str(python))
    engine("build", "--network=host", "--file", str(ROOT / "docker/Dockerfile"), "--tag", IMAGE, str(ROOT))


def lay_out_python(tree: Path) -> None:
    """Make the Python that runs the tests one of /usr/local, with the libraries that Debian lacks."""
    if not (Path(ensurepip.__file__).parent / "_bundled").is_dir():
        pytest.skip("this Python cannot be copied: its pip is a package of its own")
    stdlib, program = Path(sysconfig.get_path("stdlib")), Path(sys.executable).resolve()
    modules, libraries = tree / "usr/local/lib" / stdlib.name, tree / "usr/lib" / sysconfig.get_config_var("MULTIARCH")
    left_out = shutil.ignore_patterns("site-packages", "test", "idlelib", "*tkinter*", "__pycache__", "config-*")
    shutil.copytree(stdlib, modules, ignore=left_out, symlinks=True)
    (tree / "usr/local/bin").mkdir()
    shutil.copy(program, tree / "usr/local/bin/python3")
    (tree / "usr/local/bin/python").symlink_to("python3")
    libraries.mkdir(parents=True)
    (debian,) = base_image("debian").layers
    for file in (program, *(modules / "lib-dynload").glob("*.so")):
        for name, found in elf.libraries(file).items():
            if not (debian.tree / libraries.relative_to(tree) / name).exists():
                shutil.copy(found, libraries / name)
    (tree / CERTIFICATES).parent.mkdir(parents=True)
    shutil.copy(os.environ.get("SSL_CERT_FILE") or f"/{CERTIFICATES}", tree / CERTIFICATES)


def granted(engine: Engine, service: str) -> list[str]:
    """What compose.yaml grants a container, as options of `docker run`; devices are our own, open to all."""
    named = {"security_opt": "--security-opt", "cap_drop": "--cap-drop", "cap_add": "--cap-add"}
    described = compose_services()[service]
    options = [f"{named[key]}={word}" for key in named if key in described for word in words_of(described[key])]
    for device in words_of(described.get("devices", "[]")):
        if device and Path(device).exists():
            ours = engine.place / Path(device).name
            if not ours.exists():
                os.mknod(ours, 0o020666, Path(device).stat().st_rdev)
                ours.chmod(0o666)
            options.append(f"--device={ours}:{device}")
    return [*options, *(f"--volume={engine.place.name}-{each}" for each in words_of(described["volumes"]))]


@pytest.mark.usefixtures("image")
def test_what_docker_has_is_built_and_runs_as_compose_says(engine: Engine) -> None:
    """Doctor finds all that images need, a sweep is served by another container, a scenario runs on busybox."""
    services = compose_services()
    alone = ["--network=none", *granted(engine, "service")]
    assert engine.sweep("--version", options=["--network=none", "--cap-drop=ALL"]) == f"sweep {__version__}\n"

    examined = engine.sweep("doctor", "--offline", "--json", options=alone).splitlines()
    found = {each["check"]: each for each in map(orjson.loads, examined)}
    needed = ("bubblewrap", "sandboxes", "users of images", "layers of images", "layers of devboxes", "git")
    assert {check: found[check]["state"] for check in needed} == dict.fromkeys(needed, "ok"), found

    name = f"{engine.place.name}-service"
    serve = words_of(services["service"]["command"])
    engine("run", "--detach", "--rm", "--name", name, f"--env=SWEEP_TOKEN={TOKEN}", *alone, IMAGE, *serve)
    try:
        (probe,) = re.findall(r'"-c", "([^"]+)"', services["service"]["healthcheck"])
        wait_until(lambda: engine.does("exec", name, "python", "-c", probe), "the service does not answer")
        options = [f"--network=container:{name}", f"--env=RUNLOOP_API_KEY={TOKEN}", *granted(engine, "sweep")]
        command = [word.replace("//service:", "//127.0.0.1:") for word in words_of(services["sweep"]["command"])]
        swept = engine.sweep(*command, "--limit", "2", options=options)
        assert "2/2" in swept, swept
    finally:
        engine("stop", name)

    given = engine.place / "given"
    task = f'{CLOSED}docker_image = "busybox:1"\nworkdir = "/app"\n'
    is_solved = reward('[ "$(stat -c %U /app/done)" = www-data ]')
    write_scenario(given / "mine/task", task=task, solution="touch done && chown www-data done\n", test=is_solved)
    PackedImage.of(base_image("busybox")).save(given / "busybox.tar", "busybox:1")
    alone.append(f"--volume={given}:/given:ro")
    engine.place.chmod(0o711)
    engine.sweep("images", "load", "/given/busybox.tar", options=alone)
    swept = engine.sweep("run", "/given/mine", "--agent", "oracle", options=alone)
    assert "1/1" in swept, swept
    assert " 1.000 " in swept, swept
