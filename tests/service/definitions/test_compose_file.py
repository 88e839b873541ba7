"""A compose file of one container is an environment like any other; what needs an engine is refused by key and line."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest

from orchestrator.service.definitions.catalog import problems
from tests.service.definitions.test_catalog_scenario import read

Make = Callable[..., Path]
FILE: Final = "environment/docker-compose.yaml"
QUIET: Final = "[environment]\nallow_internet = false\n"
MET: Final = """\
version: "3.8"
x-common: &common
  environment: {MODE: fast, TOKEN: "${TOKEN}", SIZE: "${SIZE:-10}", PRICE: "$$5", COUNT: 3}
services:
  main:
    <<: *common
    build:
      dockerfile: app/docker/Main
      args: [VERSION=13]
    working_dir: /srv
    user: "33"
    cpus: 0.5
    deploy: {resources: {limits: {memory: 512M}}}
    command: ["sleep", "infinity"]
    container_name: it
    volumes: ["./more:/more:ro", "${HOST_VERIFIER_LOGS_PATH}:${ENV_VERIFIER_LOGS_PATH}", "cache:/var/cache"]
    network_mode: bridge
    privileged: false
    restarts: no
volumes: {cache: {}}
"""


def test_what_one_container_asks_for_is_met_and_the_rest_is_noted(scenario: Make) -> None:
    files = {
        "environment/app/docker/Main": "ARG VERSION\nFROM debian:$VERSION\nCOPY app/it /\n",
        "environment/app/it": "x",
    }
    folder = scenario({"task.toml": QUIET, FILE: MET, "environment/more/x": "x", **files})
    found = read(folder)
    assert (found.errors, found.blueprint.refusals) == ((), ())
    blueprint, image = found.blueprint, found.blueprint.image
    assert image is not None
    assert (image.file, image.folder, image.arguments) == ("environment/app/docker/Main", "", {"VERSION": "13"})
    assert image.text.splitlines()[-1] == 'COPY ["more","/more"]'
    assert (blueprint.working_directory, blueprint.agent_user, blueprint.verifier_user) == ("/srv", "33", "33")
    assert blueprint.environment == {"MODE": "fast", "SIZE": "10", "PRICE": "$5", "COUNT": "3"}
    assert (blueprint.resources.cpus, blueprint.resources.memory) == (0.5, 512 << 20)
    assert found.view["required_environment_variables"] == ["TOKEN"]
    assert found.view["metadata"]["optional_variables"] == "SIZE"
    noted = [note.split(": ")[1] for note in found.view["metadata"]["notes"].splitlines()]
    assert noted == [f"services.main.{each}" for each in ("command, line 14", "volumes, line 16", "restarts, line 19")]

    named = read(scenario({"task.toml": QUIET, FILE: "services: {main: {image: 'org/it:1'}}\n"}, name="named"))
    assert named.blueprint.image is not None
    assert named.blueprint.image.text == "FROM org/it:1", "its files are those of the build only"
    beside = {"environment/Dockerfile": "FROM debian:12\n", FILE: "services: {main: {environment: [A=1, B]}}\n"}
    built = read(scenario({"task.toml": QUIET, **beside}, name="beside"))
    assert built.blueprint.image is not None
    assert (built.blueprint.image.text, built.blueprint.environment) == ("FROM debian:12\n", {"A": "1", "B": ""})


def test_variables_that_harbor_sets_and_keys_that_change_no_build_say_nothing(scenario: Make) -> None:
    text = """\
    services:
      main:
        build: {context: "${CONTEXT_DIR}", labels: {a: b}, pull: true, tags: ["x:y"], cache_from: ["x:y"]}
        image: ${MAIN_IMAGE_NAME}
        cpus: ${CPUS}
        mem_limit: ${MEMORY:-2G}
        deploy: {resources: {limits: {cpus: "${CPUS}", memory: "${MEMORY}"}}}
    """
    folder = scenario(
        {"task.toml": f"{QUIET}memory_mb = 256\n", FILE: dedent(text), "environment/Dockerfile": "FROM a\n"}
    )
    found = read(folder)
    assert (found.errors, found.blueprint.refusals) == ((), ())
    assert found.blueprint.image is not None
    assert (found.blueprint.image.file, found.blueprint.resources.memory) == ("environment/Dockerfile", 256 << 20)


@pytest.mark.parametrize(
    ("service", "key", "why"),
    [
        ("volumes: ['../x:/x']", "services.main.volumes, line 4", "is a folder of the host"),
        ("volumes: [{type: bind, source: /x, target: /x}]", "services.main.volumes, line 4", "is a folder of the host"),
        ("build: app\n    volumes: ['./x:/x']", "services.main.volumes, line 5", "outside the build's context"),
        ("network_mode: host", "services.main.network_mode, line 4", "needs a container engine"),
        ("depends_on: [db]", "services.main.depends_on, line 4", "needs a container engine"),
        ("build: {context: ..}", "services.main.build, line 4", "outside environment/"),
        ("build: {target: it}", "services.main.build.target, line 4", "not known to builds here"),
        ("environment: {A: 'x${B}'}", "services.main.environment.A, line 4", "only a whole value"),
        ("environment: 3", "services.main.environment, line 4", "expected a table or a list"),
        ("image: '${IMAGE}'", "image, line 4", "expected plain text"),
        ("image: it\n  db: {image: postgres}", "services.db, line 5", "a container beside main"),
        ("image: [", "line 5", "is not YAML"),
        *(
            (f"{key}: [x]", f"services.main.{key}, line 4", "engine")
            for key in ("devices", "cap_add", "pid", "secrets")
        ),
    ],
)
def test_what_changes_the_devbox_is_refused_by_key_and_line(scenario: Make, service: str, key: str, why: str) -> None:
    text = f"services:\n  main:\n    # a comment\n    {service}\n"
    folder = scenario({"task.toml": QUIET, FILE: text, "environment/Dockerfile": "FROM debian:12\n"})
    errors = {(each.file, each.key): each.message for each in problems(folder) if each.severity == "error"}
    assert list(errors) == [(FILE, key)]
    assert why in errors[FILE, key]
    assert read(folder).errors == (), "it stays readable"
