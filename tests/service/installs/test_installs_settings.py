"""This machine's settings of npm, pip and uv reach the box that installs, and no other."""

import hashlib
import os
import re
from pathlib import Path

import pytest

from orchestrator.service.environments.package_managers import _OPEN, _OPEN_PROXIES, Settings
from orchestrator.service.sandbox.provider import HOME

from .conftest import Machine, Shop, holding, wanted

pytestmark = pytest.mark.anyio

TOKEN = "npm_0123456789abcdef-planted"


def shown(settings: Settings) -> dict[str, str]:
    """The files, by where they are in the box."""
    return {bind.target: bind.source.read_text() for bind in settings.binds if bind.source.is_file()}


def test_files_and_variables_of_the_user_are_there(machine: Machine, tmp_path: Path) -> None:
    machine(
        {".npmrc": "a=1\n", ".config/pip/pip.conf": "b=2\n", ".config/uv/uv.toml": "c=3\n"},
        PIP_INDEX_URL="https://mirror.example/simple",
        npm_config_registry="https://mirror.example/npm",
        UV_INDEX_URL="https://mirror.example/uv",
        https_proxy="http://proxy.example:3128",
        OPENAI_API_KEY="not yours",
    )
    settings = Settings.of_this_machine(tmp_path / "copies")
    assert {"PIP_INDEX_URL", "npm_config_registry", "UV_INDEX_URL", "https_proxy"} <= settings.variables.keys()
    assert "OPENAI_API_KEY" not in settings.variables
    found = shown(settings)
    assert found[f"{HOME}/.npmrc"] == "a=1\n"
    assert found[f"{HOME}/.config/pip/pip.conf"] == "b=2\n"
    assert found[f"{HOME}/.config/uv/uv.toml"] == "c=3\n"


@pytest.mark.parametrize(
    "name", ["PIP_TARGET", "PIP_USER", "npm_config_prefix", "NPM_CONFIG_USERCONFIG", "UV_TOOL_DIR", "UV_PYTHON", "UV"]
)
def test_an_install_does_not_get_the_machines_cache_folders(machine: Machine, tmp_path: Path, name: str) -> None:
    machine(**{name: "/somewhere"}, PIP_CACHE_DIR="/mine", npm_config_cache="/mine")
    variables = Settings.of_this_machine(tmp_path / "copies").variables
    assert name not in variables
    assert "/mine" not in variables.values()


def test_files_that_settings_name_are_in_the_sandbox(machine: Machine, tmp_path: Path) -> None:
    """Certificates, and folders of packages; nothing that is only part of an address."""
    wheels, index, certificate = tmp_path / "wheels", tmp_path / "index" / "simple", tmp_path / "ca.pem"
    for folder in (wheels, index):
        folder.mkdir(parents=True)
    certificate.write_text("certificate")
    certificate.chmod(0o600)
    lines = f"[global]\nfind-links = {wheels}\nextra-index-url = file://{index} https://x{wheels}\n"
    machine(
        {".config/pip/pip.conf": lines},
        SSL_CERT_FILE=str(certificate),
        PIP_EXTRA_INDEX_URL=f"https://user:word@mirror.example{tmp_path}",
    )
    settings = Settings.of_this_machine(tmp_path / "copies")
    targets = {bind.target: bind.source for bind in settings.binds}
    assert (targets[str(wheels)], targets[str(index.parent)]) == (wheels, index.parent), "files lie beside an index"
    assert shown(settings)[str(certificate)] == "certificate"
    assert str(tmp_path) not in targets


def test_package_hosts_are_read_from_the_settings(machine: Machine, tmp_path: Path) -> None:
    """Not the proxies, through which anything could be reached, and nothing of comments, files and other tools."""
    npmrc = """
    # registry=https://old.example/
    registry=https://npm.example:8443/some/path/
    @corp:registry = "https://corp.example/npm/"
    //token.example/:_authToken=abcdefghijklmnop
    proxy=http://me:secret-word-here@proxy.example:3128
    cafile=/nowhere/ca.pem
    """
    pip = """
    [global]
    extra-index-url = https://me:pa%40ss-word-that-tells@extra.example/simple
        http://127.0.0.1:3141/root/pypi
    find-links = file:///opt/wheels https://links.example
    trusted-host = files.example
        more.example:81
    """
    uv = '[[index]]\nurl = "https://uv.example/simple"\n[pip]\nallow-insecure-host = ["a.example", "b.example:82"]\n'
    machine(
        {".npmrc": npmrc, ".config/pip/pip.conf": pip, ".config/uv/uv.toml": uv},
        UV_INDEX_URL="https://[2001:db8::1]:8080/uv",
        PIP_TRUSTED_HOST="one.example two.example",
        no_proxy="corp.example",
    )
    settings = Settings.of_this_machine(tmp_path / "copies")
    assert set(settings.hosts) == {
        *("npm.example:8443", "corp.example", "token.example", "extra.example", "127.0.0.1:3141", "links.example"),
        *("files.example", "more.example:81", "uv.example", "a.example", "b.example:82", "[2001:db8::1]:8080"),
        *("one.example", "two.example"),
    }
    assert settings.proxy == "http://me:secret-word-here@proxy.example:3128"
    assert "corp.example" in settings.bypass
    assert {b"abcdefghijklmnop", b"me:pa%40ss-word-that-tells@", b"pa@ss-word-that-tells"} <= set(settings.secrets)
    assert not settings.has_index, "an extra index is one more"
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "value", "has_index"),
    [
        ("PIP_INDEX_URL", "https://mine.example/simple", True),
        ("PIP_NO_INDEX", "1", True),
        ("PIP_EXTRA_INDEX_URL", "https://mine.example/simple", False),
    ],
)
def test_pip_asks_its_own_index_unless_there_is_another(
    machine: Machine, tmp_path: Path, variable: str, value: str, *, has_index: bool
) -> None:
    machine(**{variable: value})
    assert Settings.of_this_machine(tmp_path / "copies").has_index is has_index


async def test_a_token_reaches_the_install_and_no_devbox(shop: Shop, machine: Machine, cache: Path) -> None:
    machine(
        {".npmrc": f"//mirror.example/:_authToken={TOKEN}\n", ".config/pip/pip.conf": f"# {TOKEN}\n"},
        PIP_INDEX_URL=f"https://me:{TOKEN}@mirror.example/simple",
    )
    where = "~/.npmrc ~/.config/pip/pip.conf"
    script = f"cat {where} > /tmp/seen; env >> /tmp/seen; grep -c {TOKEN} /tmp/seen > $SWEEP_AGENT_PREFIX/count"
    prepared = await shop.add(wanted(script))
    assert (shop.layer(prepared) / "count").read_text().strip() == "3"
    async with shop.box(prepared) as box:
        look = f"cat {where}; env; cat ~/.agent/count; cat /proc/*/environ /proc/*/cmdline; ls -AR ~ /run /tmp; mount"
        seen = (await shop.said(box, f"exec 2>&1; {look}; grep -rl {TOKEN[:8]} ~ /tmp /run /etc /app")).output
    assert "No such file" in seen
    assert TOKEN not in seen
    assert not holding(cache, TOKEN)


@pytest.mark.slow
async def test_npm_and_pip_install_from_where_this_machine_gets_its_packages(shop: Shop) -> None:
    """Skipped where there is none of them, or nowhere to get anything."""
    script = """
    npm install --global --prefix $SWEEP_AGENT_PREFIX cowsay@1.6.0 &&
    python3 -m venv $SWEEP_AGENT_PREFIX/python && $SWEEP_AGENT_PREFIX/python/bin/pip install cowsay==6.1
    """
    async with shop.box(await shop.add(wanted("touch $SWEEP_AGENT_PREFIX/it", key="none"))) as box:
        if (await shop.said(box, "type npm && python3 -c 'import venv, ensurepip'")).status != 0:
            pytest.skip("npm, or venv, is not installed here")
    try:
        prepared = await shop.add(wanted(script))
    except Exception as error:
        if re.search("ENOTFOUND|ECONNREFUSED|ETIMEDOUT|EAI_AGAIN|No matching distribution", str(error)):
            pytest.skip(f"nothing can be downloaded here: {error}")
        raise
    async with shop.box(prepared) as box:
        assert "moo" in (await shop.said(box, "~/.agent/bin/cowsay moo")).output
        assert "moo" in (await shop.said(box, "~/.agent/python/bin/cowsay -t moo")).output


@pytest.fixture
def bare(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A user's home, and none of the variables that this machine has."""
    for name in os.environ:
        if name.upper() in _OPEN | _OPEN_PROXIES:
            monkeypatch.delenv(name)
    return machine


def of_user(settings: Settings) -> dict[str, str]:
    """The variables, but for what the machine's own file of pip may say."""
    said = Path("/etc/pip.conf").exists() and "cert" in Path("/etc/pip.conf").read_text()
    return {name: value for name, value in settings.variables.items() if name != "PIP_CERT" or not said}


def test_agents_code_may_know_indexes_and_certificates_and_no_login(bare: Machine, tmp_path: Path) -> None:
    certificate, key = tmp_path / "ca.pem", tmp_path / "client.pem"
    certificate.write_text("-----BEGIN CERTIFICATE-----\n")
    key.write_text("-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n")
    shown_at = f"/.sweep/settings/{hashlib.sha256(certificate.read_bytes()).hexdigest()[:12]}.pem"
    pip = "https://11.22.33.44/simple https://me:word@11.22.33.45/simple"
    bare(
        {
            ".npmrc": f"registry = https://11.22.33.44/npm\n//11.22.33.44/:_authToken={TOKEN}\ncafile={certificate}\n",
            ".config/pip/pip.conf": f"[global]\nextra-index-url =\n  {pip}\nclient-proxy = http://x\nproxy = http://x\n",
            ".config/uv/uv.toml": '[[index]]\nurl = "https://11.22.33.44/uv"\ndefault = true\n',
        },
        PIP_INDEX_URL="https://10.1.2.3/simple",
        UV_PUBLISH_TOKEN=TOKEN,
        SSL_CERT_FILE=str(certificate),
        https_proxy="http://10.1.2.3:3128",
        PIP_FIND_LINKS=str(tmp_path),
    )
    settings = Settings.without_logins(tmp_path / "open", has_machines_network=False)
    assert of_user(settings) == {
        "NPM_CONFIG_REGISTRY": "https://11.22.33.44/npm",
        "NPM_CONFIG_CAFILE": shown_at,
        "PIP_EXTRA_INDEX_URL": "https://11.22.33.44/simple",
        "UV_DEFAULT_INDEX": "https://11.22.33.44/uv",
        "SSL_CERT_FILE": shown_at,
        "APT_CONFIG": "/.sweep/settings/apt.conf",
    }
    files = list((tmp_path / "open").iterdir())
    assert {Path(shown_at).name, "apt.conf"} <= {each.name for each in files}
    for secret in (TOKEN, "word@", "PRIVATE"):
        assert secret not in str(settings.variables) + "".join(each.read_text() for each in files)


def test_with_this_machines_network_its_neighbours_and_proxies_are_there_too(bare: Machine, tmp_path: Path) -> None:
    bare(
        PIP_INDEX_URL="https://10.1.2.3/simple",
        https_proxy="http://10.1.2.3:3128",
        HTTP_PROXY="http://me:word@10.1.2.3:3128",
        no_proxy="localhost,10.1.2.4",
    )
    settings = Settings.without_logins(tmp_path / "open", has_machines_network=True)
    assert of_user(settings) == {
        "PIP_INDEX_URL": "https://10.1.2.3/simple",
        "https_proxy": "http://10.1.2.3:3128",
        "no_proxy": "localhost,10.1.2.4",
    }


def test_where_nothing_is_set_nothing_is_shown(bare: Machine, tmp_path: Path) -> None:
    bare({".config/pip/pip.conf": "no section\n", ".config/uv/uv.toml": "= broken\n"})
    assert not of_user(Settings.without_logins(tmp_path / "open", has_machines_network=True))
