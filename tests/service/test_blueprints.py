"""Blueprints and objects by API, over a real socket, with the published client."""

import tarfile
from collections.abc import AsyncIterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from runloop_api_client import APIStatusError, AsyncRunloop, BadRequestError, NotFoundError
from runloop_api_client.types import BlueprintView

from orchestrator.core.protocol import Isolation
from tests.service.serving_clients import fill_cache, said, service
from tests.service.test_server_killed import to_be_killed
from tests.waiting import poll

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning"),  # the client itself gave up previews
]


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[AsyncRunloop]:
    """A service without isolation, which has no images."""
    async with service(tmp_path / "state", Isolation.NONE) as client:
        yield client


@pytest.fixture
async def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of images that has `busybox`, the one that services use now."""
    place = tmp_path_factory.mktemp("cache")
    place.chmod(0o700)
    cache = await fill_cache(place)
    monkeypatch.setenv("SWEEP_CACHE", str(cache))
    return cache


@pytest.fixture
async def client(cache: Path, sandboxes: None, tmp_path: Path) -> AsyncIterator[AsyncRunloop]:
    """A service with images."""
    async with service(tmp_path / "state", Isolation.LOCAL) as client:
        yield client


async def ended(client: AsyncRunloop, identity: str) -> BlueprintView:
    """A blueprint whose build has ended."""
    look = partial(client.blueprints.retrieve, identity)
    return await poll(look, lambda view: view.status in {"build_complete", "failed"}, "it is not built")


async def log_of(client: AsyncRunloop, identity: str) -> str:
    return "\n".join(line.message for line in (await client.blueprints.logs(identity)).logs)


async def output(client: AsyncRunloop, script: str, **asked: Any) -> str:
    """The output of a script in a devbox that ends with it."""
    devbox = await client.devboxes.create_and_await_running(**asked)
    try:
        return await said(client, devbox.id, script)
    finally:
        await client.devboxes.shutdown(devbox.id)


def archive(files: dict[str, str]) -> bytes:
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as opened:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            opened.addfile(entry, BytesIO(text.encode()))
    return packed.getvalue()


async def uploaded(client: AsyncRunloop, data: bytes) -> str:
    """An object with this content, sent as the published client does: to its address, without a token."""
    made = await client.objects.create(name="context.tar.gz", content_type="tgz")
    assert made.upload_url
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.put(made.upload_url, content=data)).status_code == 200
    done = await client.objects.complete(made.id)
    assert (done.state, done.size_bytes) == ("READ_ONLY", len(data))
    return made.id


async def test_without_a_dockerfile_devboxes_get_the_files_and_run_the_commands(plain: AsyncRunloop) -> None:
    base = await plain.blueprints.create(
        name="base",
        file_mounts={"greeting": "hello"},
        system_setup_commands=["cat ~/greeting >said"],
        launch_parameters={"keep_alive_time_seconds": 77, "launch_commands": ["echo launched >>said"]},
    )
    assert base.status == "build_complete"
    more = await plain.blueprints.create(
        name="more", base_blueprint_name="base", system_setup_commands=["echo; echo more >>said"]
    )
    assert await output(plain, "cat said", blueprint_id=base.id) == "hellolaunched\n"
    devbox = await plain.devboxes.create_and_await_running(blueprint_name="more")
    assert (devbox.blueprint_id, devbox.launch_parameters.keep_alive_time_seconds) == (more.id, 77)
    assert await said(plain, devbox.id, "cat said") == "hellomore\nlaunched\n"


async def test_the_newest_of_a_name_counts_and_deleted_ones_are_gone(plain: AsyncRunloop) -> None:
    ids = [(await plain.blueprints.create(name="same")).id for _ in range(2)]
    listed = await plain.blueprints.list(name="same")
    assert [each.id for each in listed.blueprints] == ids[::-1]
    devbox = await plain.devboxes.create(blueprint_name="same")
    assert devbox.blueprint_id == ids[1]
    await plain.blueprints.delete(ids[1])
    assert (await plain.blueprints.retrieve(ids[1])).state == "deleted"
    assert [each.id for each in (await plain.blueprints.list()).blueprints] == ids[:1]
    assert (await plain.devboxes.create(blueprint_name="same")).blueprint_id == ids[0]
    with pytest.raises(BadRequestError, match="there is no blueprint with id"):
        await plain.devboxes.create(blueprint_id=ids[1])
    with pytest.raises(NotFoundError, match="bpt_none"):
        await plain.blueprints.delete("bpt_none")


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"secrets": {"A": "B"}}, "secrets: not supported"),
        ({"services": [{"image": "redis", "name": "r"}]}, "services: not supported"),
        ({"base_blueprint_id": "bpt_none"}, "base_blueprint_id: there is no"),
        ({"base_blueprint_name": "none"}, "base_blueprint_name: no blueprint"),
        ({"build_args": {"A": "1"}}, "build_args: only a dockerfile"),
        ({"build_context": {"type": "object", "object_id": "obj_1"}}, "build_context: "),
        ({"dockerfile": "FROM a", "file_mounts": {"a b": ""}}, "file_mounts: 'a b'"),
        ({"launch_parameters": {"keep_alive_time_seconds": 0}}, "launch_parameters.keep_alive_time_seconds"),
        ({"system_setup_commands": [" "]}, "system_setup_commands.0"),
    ],
)
async def test_what_cannot_be_built_is_refused_by_name(plain: AsyncRunloop, asked: Any, problem: str) -> None:
    with pytest.raises(BadRequestError, match=problem):
        await plain.blueprints.create(name="x", **asked)


async def test_without_walls_a_dockerfile_fails_and_its_log_says_why(plain: AsyncRunloop) -> None:
    failed = await ended(plain, (await plain.blueprints.create(name="x", dockerfile="FROM busybox")).id)
    assert (failed.status, failed.failure_reason) == ("failed", "build_failed")
    assert "leave out --isolation none" in await log_of(plain, failed.id)
    with pytest.raises(BadRequestError, match=r"the build of blueprint .* failed"):
        await plain.devboxes.create(blueprint_id=failed.id)
    with pytest.raises(BadRequestError, match="no blueprint named 'x' has been built"):
        await plain.devboxes.create(blueprint_name="x")


async def test_objects_are_read_where_their_key_is_known_and_nowhere_else(plain: AsyncRunloop) -> None:
    identity = await uploaded(plain, b"data")
    address = (await plain.objects.download(identity)).download_url
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(address)).content == b"data"
        assert (await http.get(address[:-1])).status_code == 404
        assert (await http.get(address.partition("?")[0])).status_code == 404
        assert (await http.put(address, content=b"other")).status_code == 400
    assert [each.id for each in (await plain.objects.list(content_type="tgz")).objects] == [identity]
    assert (await plain.objects.delete(identity)).state == "DELETED"
    assert (await plain.objects.retrieve(identity)).state == "DELETED"
    with pytest.raises(BadRequestError, match="cannot be read"):
        await plain.objects.download(identity)
    empty = await plain.objects.create(name="empty", content_type="text", ttl_ms=1)
    with pytest.raises(APIStatusError, match=r"is UPLOADING|is DELETED"):
        await plain.objects.download(empty.id)


@pytest.mark.parametrize("end", ["complete", "delete"])
async def test_an_upload_that_ends_after_its_object_was_final_changes_nothing(
    plain: AsyncRunloop, tmp_path: Path, end: str
) -> None:
    made = await plain.objects.create(name="x", content_type="text")
    assert made.upload_url
    is_under_way, may_end = anyio.Event(), anyio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"late "
        is_under_way.set()
        await may_end.wait()
        yield b"words"

    answers: list[int] = []
    async with httpx.AsyncClient(trust_env=False) as http, anyio.create_task_group() as tasks:
        assert (await http.put(made.upload_url, content=b"first")).status_code == 200

        async def upload() -> None:
            answers.append((await http.put(str(made.upload_url), content=slow())).status_code)

        tasks.start_soon(upload)
        await is_under_way.wait()
        await getattr(plain.objects, end)(made.id)
        may_end.set()
    assert answers == [400]
    kept = {each.name: each.read_bytes() for each in (tmp_path / "state" / "objects").iterdir()}
    assert kept == ({made.id: b"first"} if end == "complete" else {})


async def test_requests_at_once_leave_an_object_as_one_of_them_after_another_would(
    plain: AsyncRunloop, tmp_path: Path
) -> None:
    folder = tmp_path / "state" / "objects"
    completed: dict[str, int | None] = {}

    async with httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=None)) as http:

        async def upload(identity: str, address: str, size: int) -> None:
            answer = await http.put(address, content=b"x" * size)
            assert answer.status_code in {200, 400}
            done = await plain.objects.complete(identity)
            if done.state == "READ_ONLY":
                completed[identity] = done.size_bytes

        made = [await plain.objects.create(name="x", content_type="text") for _ in range(30)]
        for number, each in enumerate(made):
            assert each.upload_url
            async with anyio.create_task_group() as tasks:
                for size in range(1, 7):
                    tasks.start_soon(upload, each.id, each.upload_url, size)
                if number % 2:
                    await http.put(each.upload_url, content=b"")
                    tasks.start_soon(plain.objects.delete, each.id)

    for number, each in enumerate(made):
        now, file = await plain.objects.retrieve(each.id), folder / each.id
        assert now.state == ("DELETED" if number % 2 else "READ_ONLY")
        assert file.exists() == (now.state == "READ_ONLY")
        assert now.state == "DELETED" or file.stat().st_size == now.size_bytes == completed[each.id]


@pytest.mark.slow
@pytest.mark.root
async def test_a_dockerfile_is_built_with_its_context_and_devboxes_begin_from_it(client: AsyncRunloop) -> None:
    files = {"main.txt": "from the context\n", "skipped": "", ".dockerignore": "skipped\n"}
    context: Any = {"type": "object", "object_id": await uploaded(client, archive(files))}
    text = "FROM busybox\nARG WHO=nobody\nWORKDIR /srv/app\nCOPY . .\nRUN echo made for $WHO && echo $WHO >who\n"
    asked: Any = {
        "dockerfile": text,
        "build_args": {"WHO": "us"},
        "build_context": context,
        "file_mounts": {"/etc/mine": "$HOME stays\n"},
        "system_setup_commands": ["cat /etc/mine >>who"],
    }
    preview = (await client.blueprints.preview(name="app", **asked)).dockerfile
    assert preview.startswith(text)
    assert preview.endswith('COPY <<"END" /etc/mine\n$HOME stays\nEND\nRUN <<"END"\ncat /etc/mine >>who\nEND\n')
    made = await client.blueprints.create(name="app", **asked)
    assert made.status == "queued"
    done = await ended(client, made.id)
    log = await log_of(client, made.id)
    assert done.status == "build_complete", log
    assert "RUN echo made for $WHO" in log
    assert "made for us" in log.splitlines()
    await client.objects.delete(context["object_id"])

    child = await client.blueprints.create(
        name="child", base_blueprint_id=made.id, system_setup_commands=["echo child >>who"]
    )
    assert (await ended(client, child.id)).status == "build_complete"
    await client.blueprints.delete(made.id)
    look = "pwd; ls -A; cat who main.txt"
    expected = "/srv/app\n.dockerignore\nmain.txt\nwho\nus\n$HOME stays\nchild\nfrom the context\n"
    assert await output(client, look, blueprint_name="child") == expected


@pytest.mark.slow
@pytest.mark.root
async def test_a_step_that_fails_is_told_with_its_line_and_output(client: AsyncRunloop) -> None:
    text = "FROM busybox\nRUN echo out of luck; exit 3\n"
    failed = await ended(client, (await client.blueprints.create(name="bad", dockerfile=text)).id)
    assert (failed.status, failed.failure_reason) == ("failed", "build_failed")
    logs = (await client.blueprints.logs(failed.id)).logs
    errors = "\n".join(line.message for line in logs if line.level == "error")
    assert "Dockerfile:2: RUN echo out of luck; exit 3: ended with status 3\nout of luck" in errors


@pytest.mark.slow
@pytest.mark.root
async def test_a_build_that_a_killed_service_began_is_ended_by_the_next(
    cache: Path, sandboxes: None, tmp_path: Path
) -> None:
    """What was built once is there, what was being built is built again, and nothing half is anybody's."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    async with to_be_killed(state, Isolation.LOCAL) as desk:
        text = "FROM busybox\nRUN echo first >/first\nRUN sleep 2; echo second >/second\n"
        made = await desk.post("blueprints", {"name": "slow", "dockerfile": text})
        look = partial(desk.get, f"blueprints/{made['id']}/logs")
        await poll(look, lambda view: any("second" in line["message"] for line in view["logs"]), "it does not begin")
        assert (await desk.get(f"blueprints/{made['id']}"))["status"] == "building"
    async with service(state, Isolation.LOCAL) as client:
        assert (await ended(client, made["id"])).status == "build_complete"
        assert await output(client, "cat /first /second", blueprint_id=made["id"]) == "first\nsecond\n"


SCENARIO: Any = {
    "name": "s",
    "input_context": {"problem_statement": "Do it."},
    "scoring_contract": {
        "scoring_function_parameters": [
            {"name": "it", "weight": 1.0, "scorer": {"type": "command_scorer", "command": "grep yes answer"}}
        ]
    },
}


async def score(client: AsyncRunloop, blueprint: str) -> float:
    """The score of a run in a devbox of the blueprint, in which nothing was done."""
    scenario = await client.scenarios.create(environment_parameters={"blueprint_id": blueprint}, **SCENARIO)
    run = await client.scenarios.start_run(scenario_id=scenario.id)
    await client.devboxes.await_running(run.devbox_id)
    done = await client.scenarios.runs.score_and_complete(run.id)
    assert done.scoring_contract_result is not None
    return done.scoring_contract_result.score


async def test_scenarios_by_api_begin_from_blueprints(plain: AsyncRunloop) -> None:
    made = await plain.blueprints.create(name="env", system_setup_commands=["echo yes >answer"])
    assert await score(plain, made.id) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.root
async def test_scenarios_by_api_begin_from_images(client: AsyncRunloop) -> None:
    dockerfile = "FROM busybox\nWORKDIR /srv\nRUN echo yes >answer\n"
    made = await client.blueprints.create(name="env", dockerfile=dockerfile)
    assert await score(client, made.id) == pytest.approx(1.0)
