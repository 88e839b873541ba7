"""Installs with real boxes: made once, seen by all, changed by none, whole or not there."""

import errno
import os
import time
from pathlib import Path

import anyio
import pytest

from orchestrator.common.cache_folder import cache_folder
from orchestrator.service.environments.installs import InstallFailed
from orchestrator.service.sandbox.build_cache import KEPT_DAYS, UserCache
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.prepared import Prepared
from tests.waiting import until

from .conftest import PREFIX, SCRIPT, Shop, files, opened, planted, texts, wanted

pytestmark = pytest.mark.anyio


USUAL = "/usr/bin:/bin"


def layers_of(cache: Path) -> UserCache[Path]:
    return UserCache(cache, "installs", kind="install", tree="files", read=lambda built: built.tree)


async def test_one_layer_is_made_for_many_requests_in_two_services(provider: BwrapProvider, cache: Path) -> None:
    found: list[str] = []
    async with opened(provider, cache) as one, opened(provider, cache) as other:

        async def add(shop: Shop) -> None:
            found.append(await shop.made(wanted(f"sleep 0.5; {SCRIPT}")))

        async with anyio.create_task_group() as tasks:
            for shop in (one, other, one, other, one):
                tasks.start_soon(add, shop)
    assert len(found) == 5
    assert len(set(found)) == 1


async def test_a_later_service_finds_what_an_earlier_one_made(provider: BwrapProvider, cache: Path) -> None:
    async with opened(provider, cache) as earlier:
        made = await earlier.made(wanted())
    async with opened(provider, cache) as later:
        assert await later.made(wanted()) == made
        assert later.told == [f"What belongs at {PREFIX} is there."]


async def test_the_script_has_its_prefix_and_its_variables_and_a_home(shop: Shop) -> None:
    script = 'printf "%s %s %s %s" "$SWEEP_AGENT_PREFIX" "$GREETING" "$HOME" "$PWD" > $SWEEP_AGENT_PREFIX/facts'
    prepared = await shop.add(wanted(script, GREETING="hi there"))
    assert (shop.layer(prepared) / "facts").read_text() == f"{PREFIX} hi there /home/user /home/user"


async def test_an_agent_can_read_and_run_all_of_it_and_change_nothing(shop: Shop) -> None:
    script = """
    mkdir -m 700 $SWEEP_AGENT_PREFIX/bin && cd $SWEEP_AGENT_PREFIX/bin
    printf '#!/bin/sh\\necho it runs\\n' > tool && chmod 700 tool && ln -s tool alias
    echo private > secret && chmod 600 secret
    """
    prepared = await shop.add(wanted(script))
    async with shop.box(prepared) as box:
        assert (await shop.said(box, "~/.agent/bin/alias; cat ~/.agent/bin/secret")).output == "it runs\nprivate\n"
        for attempt in (
            "echo x >> ~/.agent/bin/tool",
            "touch ~/.agent/new",
            "rm -f ~/.agent/bin/tool",
            "chmod 777 ~/.agent/bin/tool",
            "mv ~/.agent ~/moved",
            "mv ~ /home/elsewhere",
            "ln -sf /bin/true ~/.agent/bin/alias",
        ):
            assert (await shop.said(box, attempt)).status != 0, attempt
        assert (await shop.said(box, "~/.agent/bin/tool")).output == "it runs\n"


async def test_a_layer_outlives_the_boxes_that_see_it(shop: Shop) -> None:
    prepared = await shop.add(wanted())
    async with shop.box(prepared) as staying:
        async with shop.box(prepared) as going:
            before = (await shop.said(going, "cat ~/.agent/id")).output
        assert (await shop.said(staying, "cat ~/.agent/id")).output == before
    assert await shop.made(wanted()) == before


async def test_a_failing_script_is_blamed_with_the_end_of_its_words(shop: Shop) -> None:
    with pytest.raises(InstallFailed) as caught:
        await shop.add(wanted("seq 1 200000; echo no such package >&2; exit 3"))
    assert caught.value.message.startswith("The install step failed: its script ended with status 3\n")
    assert caught.value.message.endswith("no such package")
    assert len(caught.value.message) < 3000


async def test_waiting_requests_share_one_failure_and_the_next_tries_again(shop: Shop, cache: Path) -> None:
    """Its words say which try it was."""
    words: list[str] = []
    script = 'sleep 0.5; cat /proc/sys/kernel/random/uuid; test -n "$WELL" && touch $SWEEP_AGENT_PREFIX/it'

    async def add() -> None:
        with pytest.raises(InstallFailed) as caught:
            await shop.add(wanted(script))
        words.append(caught.value.message)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(add)
    await add()
    assert len(words) == 5
    assert len(set(words)) == 2
    assert files(cache, "installs/*/*") == ["lock"]
    await shop.add(wanted(script, WELL="1"))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("true", "put nothing below $SWEEP_AGENT_PREFIX"),
        ("rmdir ~/.agent && ln -s /etc ~/.agent", "something else than a folder"),
        ("rmdir ~/.agent", "something else than a folder"),
    ],
)
async def test_a_script_that_leaves_no_folder_has_failed(shop: Shop, script: str, words: str) -> None:
    with pytest.raises(InstallFailed) as caught:
        await shop.add(wanted(script))
    assert words in caught.value.message


async def test_a_layer_is_completed_when_the_devbox_that_asked_is_gone(shop: Shop, cache: Path) -> None:
    with anyio.move_on_after(0.3):
        await shop.add(wanted(f"sleep 1; {SCRIPT}"))
    await until(lambda: files(cache, "installs/*/install.json"), "there is no install")
    made = texts(cache, "installs/*/files/id")
    await shop.add(wanted())
    assert texts(cache, "installs/*/files/id") == made != []


async def test_a_service_that_ends_meanwhile_leaves_nothing(provider: BwrapProvider, cache: Path) -> None:
    async with opened(provider, cache) as ending:
        ending.tasks.start_soon(ending.add, wanted(f"{SCRIPT}; sleep 60"))
        await until(lambda: files(cache, "installs/*/making/made"), "its script does not run")
    assert files(cache, "installs/*/*") == ["lock"]
    async with opened(provider, cache) as later:
        await later.add(wanted())


async def test_files_of_a_killed_service_are_no_layer(shop: Shop, cache: Path) -> None:
    """Killed while it copied, and killed before it wrote that the copy is whole."""
    prepared = await shop.add(wanted())
    layer = shop.layer(prepared)
    async with opened(shop.provider, cache) as later:
        (layer / "half").write_text("of it")
        (layer.parent / "install.json").unlink()
        (layer.parent / "making").mkdir()
        (layer.parent / "making" / "more").write_text("of it")
        with anyio.move_on_after(0.5) as held:  # whoever has used it holds it, and knows nothing of our vandalism
            await later.add(wanted())
        assert held.cancelled_caught
        again = await shop.add(wanted())
        assert {each.name for each in shop.layer(again).iterdir()} == {"bin", "id"}
        await later.add(wanted())
    assert not (layer.parent / "making").exists()


async def test_files_of_a_killed_service_are_removed_at_the_next_install(shop: Shop, cache: Path) -> None:
    """There may be settings with tokens in it."""
    layers = layers_of(cache)
    killed, alive = layers.reserve("killed"), layers.reserve("alive")
    assert killed is not None
    assert alive is not None
    for name in ("killed", "alive"):
        (layers.open(name) / "settings").write_text("token")
    killed.close()
    await shop.add(wanted())
    assert files(cache, "installs/*/making") == ["making"]
    assert files(cache, "installs/alive/*/settings") == ["settings"]
    alive.close()


async def test_a_torn_layer_is_made_again(provider: BwrapProvider, cache: Path) -> None:
    async with opened(provider, cache) as earlier:
        torn = earlier.layer(await earlier.add(wanted())) / "id"
    torn.write_text("")
    async with opened(provider, cache) as later:
        os.close(earlier.installs._cache._held.popitem()[1])
        assert await later.made(wanted()) != ""


async def test_environments_share_it_whatever_they_bring(shop: Shop, tmp_path: Path) -> None:
    for name in ("app/main.py", "app/bin/node", "home/user/.profile"):
        planted(tmp_path / "root", name)
    bare = await shop.made(wanted())
    others = [
        Prepared(name="a", root=tmp_path / "root", environment={"APP_ENV": "test"}, working_directory="/app"),
        Prepared(name="b", root=tmp_path / "root", environment={"PATH": "/app/bin:/usr/bin:/bin"}),
    ]
    assert [await shop.made(wanted(), other) for other in others] == [bare, bare]


async def test_a_layer_that_needs_an_environments_programs_belongs_to_it(shop: Shop, tmp_path: Path) -> None:
    planted(tmp_path / "root", "app/bin/tool", "#!/bin/sh\n")
    script = f"tool && {SCRIPT}"
    environments = [
        Prepared(name=name, root=tmp_path / "root", environment={"PATH": "/app/bin:/usr/bin:/bin"})
        for name in ("a", "b")
    ]
    found = [await shop.made(wanted(script), environment) for environment in environments]
    assert len(set(found)) == 2
    assert [await shop.made(wanted(script), environment) for environment in environments] == found
    with pytest.raises(InstallFailed, match="tool: command not found"):
        await shop.add(wanted(script))


async def test_an_environments_programs_are_there_when_it_is_made(shop: Shop, tmp_path: Path) -> None:
    planted(
        tmp_path / "root",
        "app/bin/tool",
        "#!/bin/sh\necho $SECRET from the environment > $SWEEP_AGENT_PREFIX/said\n",
    )
    environment = {"PATH": "/app/bin:/usr/bin:/bin", "SECRET": "hush"}
    prepared = await shop.add(wanted("tool"), Prepared(name="t", root=tmp_path / "root", environment=environment))
    assert (shop.layer(prepared) / "said").read_text().strip() == "from the environment"


@pytest.mark.parametrize("mode", [0o777, 0o770])
async def test_a_cache_that_others_can_write_is_refused(shop: Shop, cache: Path, mode: int) -> None:
    (cache / "installs").mkdir(parents=True)
    (cache / "installs").chmod(mode)
    with pytest.raises(InstallFailed, match="can be written by others: `chmod 700` it"):
        await shop.add(wanted())


async def test_layers_unused_for_long_are_removed_when_another_is_made(provider: BwrapProvider, cache: Path) -> None:
    """Layers that a living process has used stay, however long ago that was."""
    names = {}
    async with opened(provider, cache) as earlier:
        for key in ("old", "used", "young"):
            names[key] = earlier.layer(await earlier.add(wanted(key=key))).parent
    while earlier.installs._cache._held:
        os.close(earlier.installs._cache._held.popitem()[1])
    async with opened(provider, cache) as later:
        await later.add(wanted(key="used"))
        for key in ("old", "used"):
            long_ago = time.time() - (KEPT_DAYS + 1) * 86_400
            os.utime(names[key] / "install.json", (long_ago, long_ago))
        await later.add(wanted(key="new"))
    assert [key for key, place in names.items() if place.exists()] == ["used", "young"]


def test_a_lock_that_was_removed_meanwhile_is_no_lock(cache: Path) -> None:
    one, other = layers_of(cache), layers_of(cache)
    lock = one.reserve("a")
    assert lock is not None
    assert other.reserve("a") is None
    (cache / "installs" / "a" / "lock").unlink()
    again = other.reserve("a")
    assert again is not None
    lock.close()
    assert one.reserve("a") is None
    again.close()


def test_the_cache_is_the_users_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SWEEP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "sweep"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/c")
    assert cache_folder() == Path("/var/tmp/c/sweep")
    monkeypatch.setenv("SWEEP_CACHE", "here")
    assert cache_folder() == Path.cwd() / "here"


async def test_a_cache_on_a_file_system_without_locks_is_named_with_a_way(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match=r"no locks \(No locks available\): set SWEEP_CACHE to a folder on another"):
        layers_of(cache).reserve("a1")
