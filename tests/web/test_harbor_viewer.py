"""Harbor's own viewer in a browser, before a job that `sweep export` wrote."""

import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import Page, async_playwright, expect

from tests.e2e.conftest import new_desk, reward, write_scenario
from tests.e2e.test_export import TALKER
from tests.e2e.test_steps import steps, write_steps
from tests.waiting import wait_until

from .conftest import BUSY

#: A Python that has Harbor.
HARBOR: Final = os.environ.get("SWEEP_TEST_HARBOR")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.anyio,
    pytest.mark.xdist_group("web"),
    pytest.mark.skipif(not HARBOR, reason="SWEEP_TEST_HARBOR names no Python that has harbor"),
]
#: Seconds: on a busy machine it is a minute.
STARTING_S: Final = 240.0
TEST: Final = f"echo tested\n{reward('test -e /app/done')}"


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory, isolation: str) -> Iterator[str]:
    """The address of Harbor's viewer of a job: an agent that ends badly in `one`, and well in both steps of `both`."""
    desk = new_desk(tmp_path_factory.mktemp("harbor"), isolation)
    try:
        write_scenario(desk.folder / "mine/one", test=TEST)
        write_steps(desk.folder / "mine/both", steps("first", "second"), {"tests/test.sh": TEST})
        (desk.folder / "agents").mkdir()
        ending = 'touch /app/done\ntest "$SWEEP_SCENARIO" = both || trap "exit 3" EXIT'
        (desk.folder / "agents/talker.toml").write_text(TALKER.replace("touch /app/done", ending))
        desk.sweep("run", "mine", "--agent", "talker", "--name", "it")
        desk.sweep("export", "it", "--to", "harbor", "-o", "jobs/it")
        said = desk.folder / "viewer.log"
        program, jobs = str(Path(HARBOR or "").with_name("harbor")), str(desk.folder / "jobs")
        command = [program, "view", jobs, "--port", "0", "--no-build"]
        with said.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as viewing:
            try:
                address = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
                yield wait_until(lambda: address.search(said.read_text()), said.read_text, seconds=STARTING_S)[1]
            finally:
                viewing.terminate()
    finally:
        desk.clear()


@pytest.fixture
async def page(viewer: str, chromium: str) -> AsyncIterator[Page]:
    """A page of the viewer's, in which no script fails and every answer of its API is one."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = await browser.new_page(base_url=viewer, viewport={"width": 1280, "height": 1600})
        page.set_default_timeout(BUSY)
        expect.set_options(timeout=BUSY)
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("response", lambda each: troubles.append(each.url) if each.status >= 500 else None)
        yield page
        await browser.close()
    assert troubles == []


async def test_jobs_and_their_trials_are_listed(page: Page) -> None:
    await page.goto("/")
    row = page.get_by_role("row").filter(has_text="talker")
    await expect(row).to_contain_text(re.compile(r"it.*mine.*talker.*small.*1\.00.*2/2 \(1 error"))
    await row.get_by_text("it", exact=True).click()
    await expect(page.get_by_role("row").filter(has_text="both__")).to_contain_text("1.00")
    await expect(page.get_by_role("row").filter(has_text="one__")).to_contain_text("NonZeroAgentExitCodeError")
    await page.get_by_role("tab", name="Overview").click()
    await expect(page.get_by_role("row").filter(has_text="talker")).to_contain_text(re.compile(r"small.*mine.*1\.00"))


async def test_a_trial_has_its_rewards_times_trajectory_files_log_and_exception(page: Page) -> None:
    await page.goto("/jobs/it")
    await page.get_by_role("row").filter(has_text="one__").click()
    for words in ("1.00", "Agent Execution", "Verifier", "All done."):
        await expect(page.get_by_text(words).first).to_be_visible()
    for tab, words in {
        "Agent": "agent/command-0/stdout.txt",
        "Verifier": "tested",
        "Artifacts": "artifacts/app/why.txt",
        "Log": "exec bash",
        "Exception": "the agent ended with an exit status other than 0",
        "Config": '"trial_name"',
    }.items():
        await page.get_by_role("tab", name=tab, exact=True).click()
        await expect(page.get_by_role("tabpanel").get_by_text(words).first).to_be_visible()


async def test_a_trial_of_several_steps_has_those_of_each_step(page: Page) -> None:
    await page.goto("/jobs/it")
    await page.get_by_role("row").filter(has_text="both__").click()
    await expect(page.get_by_text("second", exact=True).first).to_be_visible()
    await expect(page.get_by_text("All done.").first).to_be_visible()
    await page.get_by_role("tab", name="Verifier", exact=True).click()
    await expect(page.get_by_role("tabpanel").get_by_text("tested").first).to_be_visible()
    await page.get_by_role("tab", name="Log", exact=True).click()
    await expect(page.get_by_role("tabpanel").get_by_text("exec bash").first).to_be_visible()
