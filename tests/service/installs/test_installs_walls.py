"""A hostile scenario gets nothing of an install that its devboxes need, and the install itself reaches little."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute

from orchestrator.service.environments.installs import InstallFailed
from orchestrator.service.environments.package_managers import covers
from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider
from orchestrator.service.sandbox.egress.rules import IPAddress
from orchestrator.service.sandbox.prepared import Prepared

from .conftest import Machine, Shop, holding, opened, planted, texts, wanted

pytestmark = pytest.mark.anyio

TOKEN: Final = "npm_0123456789abcdef-planted"
PATH: Final = {"PATH": "/app/bin:/usr/local/bin:/usr/bin:/bin"}
#: Takes all there is, wherever it could be looked for later.
THIEF: Final = """\
#!/bin/bash
{ env; cat ~/.npmrc ~/.config/*/* ~/.pip/* /run/settings/*/* /usr/etc/npmrc /usr/local/etc/npmrc; } >"/app/loot" 2>&1
mkdir -p "$SWEEP_AGENT_PREFIX" && cp /app/loot "$SWEEP_AGENT_PREFIX/loot"
"""
Serve = Callable[[Callable[[ByteStream], Awaitable[None]]], Awaitable[int]]


@pytest.fixture
def rich(machine: Machine) -> Path:
    """Somebody with tokens in every place."""
    return machine(
        {
            ".npmrc": f"//mirror.test/:_authToken={TOKEN}\n",
            ".config/pip/pip.conf": f"[global]\nextra-index-url = https://me:{TOKEN}@mirror.test/simple\n",
            ".config/uv/uv.toml": f'index-url = "https://me:{TOKEN}@mirror.test/simple"\n',
        },
        npm_config__authToken=TOKEN,
        UV_INDEX_CORP_PASSWORD=TOKEN,
    )


@pytest.fixture
async def answering() -> AsyncIterator[Serve]:
    """Serves something on the host's loopback; returns the port."""
    async with AsyncExitStack() as listeners, anyio.create_task_group() as serving:

        async def answering(handler: Callable[[ByteStream], Awaitable[None]]) -> int:
            listener = await listeners.enter_async_context(await anyio.create_tcp_listener(local_host="127.0.0.1"))
            serving.start_soon(listener.serve, handler)
            return int(listener.extra(SocketAttribute.local_port))

        yield answering
        serving.cancel_scope.cancel()


async def greet(stream: ByteStream) -> None:
    async with stream:
        await stream.receive()
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n")


async def here(host: str, port: int) -> Sequence[IPAddress]:
    """Every name leads to this machine."""
    del host, port
    return [ip_address("127.0.0.1")]


def test_the_thief_finds_something(rich: Path) -> None:
    """Else an empty result would prove nothing."""
    assert all(TOKEN in text for text in texts(rich, ".npmrc") + texts(rich, ".config/*/*"))


@pytest.mark.parametrize("name", [".bash_profile", ".bash_login", ".profile", ".bashrc"])
async def test_a_scenarios_login_files_do_not_run_where_its_agent_is_installed(
    shop: Shop, rich: Path, tmp_path: Path, name: str
) -> None:
    """Neither in the box that has the settings nor, with its programs, in the other one."""
    planted(tmp_path / "root", f"home/user/{name}", THIEF)
    planted(tmp_path / "root", "app/bin/tool", "#!/bin/sh\n")
    environment = Prepared(name="thief", root=tmp_path / "root", environment=PATH | {"BASH_ENV": f"/home/user/{name}"})
    for script in ("touch $SWEEP_AGENT_PREFIX/it", "tool && touch $SWEEP_AGENT_PREFIX/it"):
        layer = shop.layer(await shop.add(wanted(script, key=script), environment))
        assert [file.name for file in layer.iterdir()] == ["it"]


@pytest.mark.parametrize("stolen", ["mkdir", "npm", "python3", "touch", "bash", "sh", "env"])
async def test_the_machines_program_runs_before_a_scenarios_of_that_name(
    shop: Shop, rich: Path, tmp_path: Path, stolen: str
) -> None:
    planted(tmp_path / "root", f"app/bin/{stolen}", THIEF)
    script = "sh -c true; env true; mkdir -p $SWEEP_AGENT_PREFIX/bin; touch $SWEEP_AGENT_PREFIX/it; npm || python3 -V"
    environment = Prepared(name="thief", root=tmp_path / "root", environment=PATH)
    layer = shop.layer(await shop.add(wanted(script), environment))
    assert sorted(file.name for file in layer.iterdir()) == ["bin", "it"]


async def test_a_program_that_only_the_scenario_has_gets_no_settings_and_nothing_of_its_own(
    shop: Shop, rich: Path, tmp_path: Path
) -> None:
    """It reads no settings of npm, pip and uv, of the user's or of the scenario's, in no form."""
    root = tmp_path / "root"
    planted(root, "app/bin/tool", THIEF)
    for name in (".npmrc", ".config/pip/pip.conf", ".pip/pip.conf", ".bash_profile"):
        planted(root, f"home/user/{name}", "of the scenario")
    planted(root, "home/user/.tools/bin/other", "#!/bin/sh\n")
    environment = Prepared(
        name="thief",
        root=root,
        environment={"PATH": f"{PATH['PATH']}:/home/user/.tools/bin:/home/user/.config/pip:/home/user/.bash_profile/x"},
    )
    layer = shop.layer(await shop.add(wanted("tool && other"), environment))
    loot = (layer / "loot").read_text()
    assert "SWEEP_AGENT_PREFIX=" in loot
    assert "of the scenario" not in loot
    assert TOKEN not in loot
    assert "mirror.test" not in loot
    assert base64.b64encode(f"me:{TOKEN}".encode()).decode()[:12] not in loot


async def test_a_token_that_an_install_writes_down_is_struck_out(shop: Shop, rich: Path, cache: Path) -> None:
    """In plain text, in an address, as a login that is sent, in a program, and as the target of a link."""
    encoded = base64.b64encode(f"me:{TOKEN}".encode()).decode()
    script = f"""
    cd $SWEEP_AGENT_PREFIX && cp ~/.npmrc copied && cat ~/.config/*/* >joined && mkdir deep && env >deep/env
    printf '\\0\\1%s\\0{encoded}' {TOKEN} >program && chmod 555 program && ln -s https://me:{TOKEN}@x link
    """
    layer = shop.layer(await shop.add(wanted(script)))
    assert (layer / "copied").read_text() == f"//mirror.test/:_authToken={'*' * len(TOKEN)}\n"
    assert (layer / "program").stat().st_mode & 0o777 == 0o555
    assert not holding(cache, TOKEN)
    assert not holding(cache, encoded)
    assert not (layer / "link").is_symlink()


async def test_a_token_that_an_install_prints_is_in_no_message(shop: Shop, rich: Path) -> None:
    with pytest.raises(InstallFailed, match=r"//mirror\.test/:_authToken=\*+") as failed:
        await shop.add(wanted("cat ~/.npmrc; env >&2; false"))
    assert TOKEN not in str(failed.value)


async def test_an_install_reaches_what_the_settings_and_its_agent_name_and_says_what_it_was_refused(
    provider: BwrapProvider, cache: Path, machine: Machine, answering: Serve
) -> None:
    """A name that the user of the machine gave may lead into his own network; one of an agent's file may not."""
    port, other = await answering(greet), await answering(greet)
    machine({".npmrc": f"registry=http://mirror.test:{port}/\n"}, PIP_INDEX_URL=f"http://127.0.0.1:{port}/simple")
    ask = "curl -sS -w '%{http_code}\n' "
    async with opened(provider, cache, here) as shop:
        script = f"{ask} http://mirror.test:{port}/ http://127.0.0.1:{port}/ >$SWEEP_AGENT_PREFIX/said"
        layer = shop.layer(await shop.add(wanted(script)))
        assert (layer / "said").read_text() == "hello\n200\nhello\n200\n"
        places = (f"named.test:{other}", "other.test", "169.254.169.254", f"localhost:{other}")
        script = f"{ask} {' '.join(f'http://{place}/' for place in places)}; false"
        install = wanted(script, key="k2", hosts=(f"named.test:{other}",))
        with pytest.raises(InstallFailed) as failed:
            await shop.add(install)
    assert "hello" not in str(failed.value)
    assert f"It was not let out to {', '.join(places)}: no setting" in str(failed.value)
    assert "name it in [network] hosts of the agent's file" in str(failed.value)


async def test_a_scenarios_programs_do_not_reach_the_hosts_that_settings_name(
    provider: BwrapProvider, cache: Path, machine: Machine, answering: Serve, tmp_path: Path
) -> None:
    port = await answering(greet)
    machine({".npmrc": f"registry=http://mirror.test:{port}/\n"}, PIP_INDEX_URL=f"http://127.0.0.1:{port}/simple")
    say = f"curl -sS http://mirror.test:{port}/; curl -sS --noproxy '*' http://127.0.0.1:{port}/"
    planted(tmp_path / "root", "app/bin/tool", f"#!/bin/sh\n{{ {say}; }} >$SWEEP_AGENT_PREFIX/said 2>&1; true\n")
    async with opened(provider, cache, here) as shop:
        prepared = await shop.add(wanted("tool"), Prepared(name="t", root=tmp_path / "root", environment=PATH))
        said = (shop.layer(prepared) / "said").read_text()
    assert "may not reach mirror.test" in said
    assert "hello" not in said


async def test_installs_use_the_machines_proxy_and_reach_nothing_else_through_it(
    provider: BwrapProvider, cache: Path, machine: Machine, answering: Serve
) -> None:
    asked: list[bytes] = []

    async def proxy(stream: ByteStream) -> None:
        async with stream:
            asked.append(await stream.receive())
            await stream.send(b"HTTP/1.1 200 OK\r\n\r\n")
            await greet(stream)

    port, direct = await answering(proxy), await answering(greet)
    word = "a-word-that-is-long"
    machine(
        {".npmrc": f"registry=http://mirror.test:8081/\nproxy=http://me:{word}@127.0.0.1:{port}/\n"},
        PIP_INDEX_URL=f"http://direct.test:{direct}/simple",
        no_proxy=".direct.test,direct.test",
    )
    script = f"""
    curl -sS http://mirror.test:8081/ http://direct.test:{direct}/ >$SWEEP_AGENT_PREFIX/said
    curl -sS -x http://127.0.0.1:{port} http://other.test/ >>$SWEEP_AGENT_PREFIX/said 2>&1
    curl -sS --noproxy '' -p http://127.0.0.1:{port}/ >>$SWEEP_AGENT_PREFIX/said 2>&1
    env | grep -i proxy >>$SWEEP_AGENT_PREFIX/said
    """
    async with opened(provider, cache, here) as shop:
        said = (shop.layer(await shop.add(wanted(script))) / "said").read_text()
    assert said.startswith("hello\nhello\n")
    assert said.count("hello") == 2
    login = base64.b64encode(f"me:{word}".encode()).decode()
    (head,) = asked
    assert head.decode().split("\r\n") == [
        *("CONNECT mirror.test:8081 HTTP/1.1", "Host: mirror.test:8081", f"Proxy-Authorization: Basic {login}", "", "")
    ]
    assert word not in said


async def test_settings_beside_programs_are_covered(shop: Shop, tmp_path: Path) -> None:
    """They are there for everybody on the machine, and a devbox is somebody else."""
    binds = covers(tmp_path / "nothing")
    async with shop.box(Prepared(binds=binds)) as box:
        for place in ("/usr/etc/npmrc", "/usr/local/etc/npmrc", "/usr/pip.conf"):
            assert (await shop.said(box, f"cat {place} 2>/dev/null")).output == ""
        for bind in binds:
            assert (await shop.said(box, f"wc -c <{bind.target}")).output.strip() == "0"
