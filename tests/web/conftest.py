"""A real sweep with an agent that prints what no page should obey, `sweep view` beside it, and Chromium before it."""

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import orjson
import pytest
from playwright.async_api import Page, async_playwright, expect

from scripts import demo_sweep
from tests.e2e.conftest import Desk, new_desk, write_scenario

#: Milliseconds for what a busy machine may be slow at.
BUSY: Final = 30_000
#: What must stay text wherever it is shown: markup, the end of a script, and marks that turn text round.
MARKUP: Final = "<img src=x onerror=window.pwned=1></script><script>window.pwned=1</script>"
#: An agent that writes a patch, a trajectory and its usage, and prints colours, titles, bells, and a line of 1 MB.
HOSTILE: Final = r"""
description = "Prints what no page should obey."
run = '''
printf '\033[31mred\033[0m MARKUP\n'
printf '\033]0;a title\007\001 \342\200\256turned round \360\237\231\202\n'
head -c 1000000 /dev/zero | tr '\0' 'x'
printf '\nthe last words\n'
printf 'MARKUP\n' >notes.txt
test -e .easy && touch done
cp /tmp/trajectory.json ~/trajectory.json 2>/dev/null || printf '%s' 'TRAJECTORY' >~/trajectory.json
printf '{"cost": 0.25, "input": 1200, "output": 300}\n'
'''

[usage]
format = "jsonl"
cost_usd = "$[?@.cost].cost"
input_tokens = "$[?@.cost].input"
output_tokens = "$[?@.cost].output"

[trajectory]
from = "~/trajectory.json"
format = "atif"
"""
TRAJECTORY: Final = {
    "schema_version": "ATIF-v1.4",
    "session_id": "s",
    "agent": {"name": "hostile", "version": "1"},
    "steps": [
        {"step_id": 1, "source": "user", "message": "Make a file.", "timestamp": "2026-11-30T08:00:00Z"},
        {
            "step_id": 2,
            "source": "agent",
            "message": f"I say {MARKUP}",
            "timestamp": "2026-11-30T08:00:07Z",
            "tool_calls": [{"tool_call_id": "c", "function_name": "bash", "arguments": {"command": f"echo {MARKUP}"}}],
            "observation": {"results": [{"source_call_id": "c", "content": f"{MARKUP} \u202eturned"}]},
            "metrics": {"prompt_tokens": 900, "completion_tokens": 100, "cost_usd": 0.25},
        },
    ],
}
#: Scenarios of the sweep `nightly`.
SCENARIOS: Final = 40
SETTINGS: Final = f"""
benchmark = "six"
[[arms]]
agent = "hostile"
[[arms]]
agent = "oracle"
[[arms]]
agent = "nop"
name = '''nop {MARKUP}'''
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """`sweep view` of the runs below a desk; `link` is the one that it printed."""

    desk: Desk
    link: str

    @property
    def runs(self) -> Path:
        return self.desk.folder / "runs"

    @property
    def origin(self) -> str:
        parts = urlsplit(self.link)
        return f"{parts.scheme}://{parts.netloc}"

    def page(self, path: str) -> str:
        """The address of a page, with the key."""
        return f"{self.origin}{path}{'&' if '?' in path else '?'}{urlsplit(self.link).query}"


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory, isolation: str) -> Iterator[Shown]:
    """The sweep `night`, run for real, and `nightly` of the same numbers as ever, in the page."""
    desk = new_desk(tmp_path_factory.mktemp("web"), isolation)
    try:
        for name in ("ant", "bee", "cat", "dog"):
            folder = write_scenario(desk.folder / "six" / name)
            if name in {"ant", "bee"}:
                (folder / "environment" / ".easy").touch()
        (desk.folder / "agents").mkdir()
        words = HOSTILE.replace("MARKUP", MARKUP).replace("TRAJECTORY", orjson.dumps(TRAJECTORY).decode())
        (desk.folder / "agents" / "hostile.toml").write_text(words)
        (desk.folder / "sweep.toml").write_text(SETTINGS)
        desk.sweep("run", "--config", "sweep.toml", "--name", "night", "--devboxes", "4")
        demo_sweep.write(desk.folder / "runs" / "nightly", scenarios=SCENARIOS, arms=2, trials=2)
        viewing = desk.start("view", "--port", "0")
        viewing.wait_for("token=")
        yield Shown(desk=desk, link=viewing.out.strip())
    finally:
        desk.clear()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser that the machine has: Debian's."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    return path


@pytest.fixture
async def page(shown: Shown, chromium: str) -> AsyncIterator[Page]:
    """A page whose console stays free of errors, which asks nobody else, and in which nothing of others was executed.

    A browser for each test: one that tests share would leave its event loop to those of other folders.
    """
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(BUSY)
        expect.set_options(timeout=BUSY)
        troubles: list[str] = []
        asked: set[str] = set()
        page.on("console", lambda said: troubles.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(dialog.message))
        page.on("request", lambda request: asked.add(urlsplit(request.url).hostname or urlsplit(request.url).scheme))
        yield page
        is_pwned = await page.evaluate("window.pwned ?? false")
        await browser.close()
    assert troubles == []
    assert is_pwned is False
    assert asked <= {"127.0.0.1", "file"}
