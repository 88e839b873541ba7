"""The pages in a browser, with the data of a real sweep."""

import re
from typing import Final

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from orchestrator.common import locks
from orchestrator.rundir.recorded import RecordedSweep
from orchestrator.view.report import number, report, span
from scripts import demo_sweep

from .conftest import MARKUP, SCENARIOS, Shown

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("web")]  # one sweep for all of them
TRIAL: Final = "/sweep/night/trial?scenario=cat&arm=hostile&n=1"
#: Bytes of a long log.
LONG: Final = 50_000_000


async def cells(page: Page, row: str) -> list[str]:
    found = page.locator(".row", has=page.get_by_role("rowheader", name=row, exact=True)).locator(".cell")
    return await found.all_inner_texts()


async def names(page: Page) -> list[str]:
    return await page.locator(".row [role=rowheader]").all_inner_texts()


@pytest.mark.anyio
async def test_sweeps_are_listed_searched_and_opened_with_keys(page: Page, shown: Shown) -> None:
    await page.goto(shown.link)
    await expect(page.locator("[data-row]")).to_have_count(2)
    await expect(page.locator("[data-row]", has_text="12/12")).to_contain_text("finished")
    await page.keyboard.press("/")
    await page.keyboard.type("nightly")
    await expect(page.locator("[data-row]:visible")).to_have_count(1)
    await page.reload()
    assert "q=nightly" in page.url
    await expect(page.locator("[data-row]:visible")).to_have_count(1)
    await page.keyboard.press("/")
    await page.keyboard.press("Escape")
    await expect(page.locator("[data-row]:visible")).to_have_count(2)
    for key in "jjk":
        await page.keyboard.press(key)
    chosen = await page.locator("[data-row].chosen a").first.inner_text()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name=chosen, exact=True)).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("heading", name="Sweeps", exact=True)).to_be_visible()


@pytest.mark.anyio
async def test_a_sweep_shows_the_numbers_of_the_report_and_every_trial(page: Page, shown: Shown) -> None:
    sweep = RecordedSweep(shown.runs / "night")
    await page.goto(shown.page("/sweep/night/"))
    for arm in report(sweep.ledger, sweep.plan, sweep.folder).arms:
        card = page.locator(".card", has=page.get_by_role("heading", name=arm.arm, exact=True))
        await expect(card).to_contain_text(number(arm.mean))
        await expect(card).to_contain_text(span(arm.low, arm.high))
    assert await cells(page, "ant") == ["1.000", "1.000", "0.000"]
    assert await cells(page, "dog") == ["0.000", "1.000", "0.000"]
    await expect(page.get_by_text(f"nop {MARKUP}").first).to_be_visible()
    await expect(page.locator("svg.timeline a")).to_have_count(12)
    await expect(page.locator("svg.plot")).to_have_count(2)
    for legend in await page.locator("#charts .legend").all():
        await expect(legend).to_have_text(re.compile(f"hostile.*oracle.*nop {re.escape(MARKUP)}", re.DOTALL))
    await page.locator("#view").select_option("waffle")
    await expect(page.locator("canvas")).to_have_count(3)
    await page.locator("canvas").first.click(position={"x": 5, "y": 5})
    await expect(page.get_by_role("heading", name="ant")).to_be_visible()


@pytest.mark.anyio
async def test_the_grid_is_filtered_sorted_and_walked_and_the_address_keeps_it(page: Page, shown: Shown) -> None:
    await page.goto(shown.page("/sweep/nightly/"))
    await page.locator("#show").select_option("failed")
    failed = await names(page)
    assert 0 < len(failed) < SCENARIOS
    await page.locator("#sort").select_option("name")
    assert await names(page) == sorted(failed)
    await page.reload()
    assert "show=failed" in page.url
    assert "sort=name" in page.url
    assert await names(page) == sorted(failed)
    await page.locator("#show").select_option("")
    await page.locator("[data-has=agent_timed_out]").click()
    assert "has=agent_timed_out" in page.url
    assert await page.locator(".row .cell.flagged").count() >= len(await names(page)) > 0
    await page.locator("#has").click()
    await page.locator("#show").select_option("flaky")
    assert 0 < len(await names(page)) < SCENARIOS
    await page.locator("#show").select_option("")
    await page.get_by_label("Search scenarios").fill("csv")
    assert {name[:3] for name in await names(page)} == {"csv"}
    await page.keyboard.press("Enter")
    for key in "jjkl":
        await page.keyboard.press(key)
    await expect(page.locator(".row.chosen .cell.at")).to_have_attribute("href", re.compile("arm=medium&n=1$"))
    chosen = await page.locator(".row.chosen [role=rowheader]").inner_text()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name=chosen)).to_be_visible()
    await page.keyboard.press("?")
    await expect(page.locator("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.locator("dialog")).to_be_hidden()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("heading", name="nightly", exact=True)).to_be_visible()
    await expect(page.get_by_label("Search scenarios")).to_have_value("csv")  # as it was left


@pytest.mark.anyio
async def test_what_an_agent_left_is_shown_and_nothing_of_it_is_obeyed(page: Page, shown: Shown) -> None:
    await page.goto(shown.page(TRIAL))
    log = page.locator("#log-text")
    await expect(log).to_contain_text("the last words")
    await expect(log).to_contain_text("xxxx")  # the end of a line that is longer than a piece
    await page.get_by_role("button", name="start").click()
    await expect(log.locator(".c1")).to_have_text("red")
    await expect(log).to_contain_text(f"red {MARKUP}")
    await expect(log).to_contain_text(r"\x1b]0;a title\x07\x01 \u202eturned round 🙂")
    await expect(page.locator(".patch .added").first).to_have_text(f"+{MARKUP}")
    turns = page.locator(".turn")
    await expect(turns).to_have_count(2)
    await expect(turns.nth(1)).to_contain_text(f"I say {MARKUP}")
    await expect(turns.nth(1)).to_contain_text("1.0k tokens")
    await turns.nth(1).locator("summary").click()
    await expect(turns.nth(1).locator(".text").nth(1)).to_have_text(rf"{MARKUP} \u202eturned")
    await expect(page.get_by_text("sweep scenario run cat --benchmark six --agent hostile")).to_be_visible()
    await expect(page.get_by_text("$0.25")).not_to_have_count(0)
    await expect(page.get_by_text("in a new devbox, over the agent's files")).to_be_visible()
    await page.locator("#log-file").select_option("patch.diff")
    await expect(log).to_contain_text("notes.txt")
    async with page.expect_download() as found:
        await page.get_by_role("link", name="Save patch.diff").click()
    assert (await found.value).suggested_filename == "patch.diff"


@pytest.mark.anyio
async def test_a_log_of_50_mb_is_read_in_pieces_both_ways_and_searched(page: Page, shown: Shown) -> None:
    sweep = RecordedSweep(shown.runs / "nightly")
    key = next(iter(sweep.plan))
    path = sweep.attempt_folder(key, 1) / "agent.log"
    line = "".join(f"line {number:07} of a long log, with words in it\n" for number in range(1000))
    path.write_text(line * (LONG // len(line)) + "a needle\n" + line)
    await page.goto(shown.page(f"/sweep/nightly/trial?scenario={key.scenario}&arm={key.arm}&n={key.number}"))
    log = page.locator("#log-text")
    await expect(log).to_contain_text("line 0000999")
    for _ in range(30):  # upwards, piece by piece
        await log.evaluate("box => { box.scrollTop = 0; }")
        await page.wait_for_timeout(20)
    assert await log.locator("pre").count() <= 6
    await expect(page.locator("#log-place")).not_to_contain_text("100 %")
    await page.get_by_label("Search the log").fill("NEEDLE")
    await page.keyboard.press("Enter")
    await expect(log).to_contain_text("a needle")
    await page.get_by_role("button", name="start").click()
    await expect(page.locator("#log-place")).to_contain_text("to 0 %")
    for _ in range(30):
        await log.evaluate("box => { box.scrollTop = box.scrollHeight; }")
        await page.wait_for_timeout(20)
    assert await log.locator("pre").count() <= 6
    assert len(await log.inner_text()) < 1_000_000


@pytest.mark.anyio
async def test_a_sweep_and_a_log_are_followed_while_they_run(page: Page, shown: Shown) -> None:
    ticking = "command:for i in $(seq 60); do echo tick $i; sleep 0.1; done; touch done"
    running = shown.desk.start("run", "six", "--agent", ticking, "--name", "now", "--limit", "1")
    running.wait_for("Starting now")
    await page.goto(shown.page("/sweep/now/"))
    await page.evaluate("window.isSame = true")
    await expect(page.locator(".state")).to_have_text("running")
    await expect(page.locator(".flying")).to_contain_text("tick")
    assert page.context.browser is not None
    follower = await page.context.browser.new_page()
    await follower.goto(shown.page("/sweep/now/trial?scenario=ant&arm=command&n=1"))
    await expect(follower.locator("#log-text")).to_contain_text("tick 50")
    await expect(follower.locator(".score")).to_have_text("1.000")
    await expect(page.locator(".state")).to_have_text("finished")
    assert await cells(page, "ant") == ["1.000"]
    assert await page.evaluate("window.isSame")
    running.end()


@pytest.mark.anyio
async def test_a_log_that_is_gone_is_asked_for_no_more(page: Page, shown: Shown) -> None:
    folder = shown.runs / "going"
    demo_sweep.write(folder, scenarios=4, arms=1, done=0.5)
    sweep = RecordedSweep(folder)
    key = next(sweep.plan.pending(sweep.ledger))
    asked: list[str] = []
    assert page.context.browser is not None
    follower = await page.context.browser.new_page()  # the other one's console stays free of errors
    follower.on("request", lambda request: asked.append(request.url) if "/log?" in request.url else None)
    await follower.clock.install()
    with locks.hold(folder):
        await follower.goto(shown.page(f"/sweep/going/trial?scenario={key.scenario}&arm={key.arm}&n={key.number}"))
        await expect(follower.locator("#log-place")).to_have_text("nothing yet")
        folder.rename(shown.desk.folder / "gone")
    await follower.clock.run_for(2_000)
    await expect(follower.locator("#log-place")).to_contain_text("There is no sweep 'going'")
    count = len(asked)
    await follower.clock.run_for(600_000)
    assert len(asked) == count


@pytest.mark.anyio
async def test_a_comparison_shows_flips_first_with_links_to_both_trials(page: Page, shown: Shown) -> None:
    await page.goto(shown.link)
    await page.get_by_role("button", name="Compare the chosen").click()
    await expect(page.get_by_role("alert")).to_contain_text("Choose one sweep or more")
    await page.get_by_label("Compare night", exact=True).check()
    await page.get_by_role("button", name="Compare the chosen").click()
    await page.get_by_label("oracle").uncheck()
    await page.locator("form").get_by_role("button", name="Compare").click()
    await expect(page.locator(".pair")).to_have_count(1)
    await expect(page.locator(".sentence")).to_contain_text("on 4 common scenarios; 0 gained, 2 lost")
    rows = page.locator(".flips tbody tr")
    await expect(rows).to_have_count(2)
    await expect(rows.first).to_contain_text("lost")
    await page.get_by_role("link", name="the other way round").click()
    await expect(page.locator(".sentence")).to_contain_text("2 gained, 0 lost")
    await page.locator(".flips tbody tr", has_text="bee").get_by_role("link", name="1.000").click()
    await expect(page.get_by_role("heading", name="bee")).to_be_visible()
    assert "arm=hostile" in page.url


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_page_keeps_anybody_out_and_all_fit_a_phone(page: Page, shown: Shown, scheme: str) -> None:
    """Nothing serious is found by axe, and at 390 pixels nothing is wider than the screen."""
    await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    report_file = (shown.runs / "night" / "report.html").as_uri()
    pages = ("/", "/sweep/nightly/", "/sweep/night/", TRIAL, "/compare?run=nightly")
    for address in [*(shown.page(path) for path in pages), report_file]:
        await page.set_viewport_size({"width": 1280, "height": 900})
        await page.goto(address)
        await page.wait_for_load_state("load")
        found = await Axe().run(page)
        serious = [each for each in found.response["violations"] if each["impact"] in {"serious", "critical"}]
        assert [(each["id"], each["nodes"][0]["html"][:200]) for each in serious] == [], address
        await page.set_viewport_size({"width": 390, "height": 844})
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390, address


@pytest.mark.anyio
async def test_every_end_of_a_sweep_leaves_a_report_that_needs_nothing_else(page: Page, shown: Shown) -> None:
    path = shown.runs / "night" / "report.html"
    assert "://" not in re.sub(r"http://www.w3.org\S*", "", path.read_text())
    await page.goto(path.as_uri())
    assert await cells(page, "dog") == ["0.000", "1.000", "0.000"]
    await page.get_by_label("Search scenarios").fill("cat")
    assert await names(page) == ["cat"]
    await page.locator(".row .cell").first.click()
    await expect(page.locator("details[open]")).to_contain_text("the last words")
    await expect(page.locator("details[open]")).to_contain_text("of 1000")
    await expect(page.locator("details[open] .patch .added").first).to_have_text(f"+{MARKUP}")
    told = shown.desk.sweep("report", "night", "--md").out
    assert "| `hostile` | 4/4 | 0 | 0 | 0.500 |" in told
    assert shown.desk.sweep("report", "night", "-o", "it.html").err.startswith("it.html: ")


def test_a_report_that_cannot_be_written_changes_nothing_in_the_end_of_its_sweep(shown: Shown) -> None:
    in_its_place = shown.runs / "blocked" / "report.html"
    in_its_place.mkdir(parents=True)
    assert "1/1" in shown.desk.sweep("run", "six", "--agent", "oracle", "--name", "blocked", "--limit", "1").out
    assert "report.not_written" in (in_its_place.parent / "sweep.log").read_text()


def test_a_folder_that_is_not_there_and_a_port_that_is_taken_are_named(shown: Shown) -> None:
    assert "no folder nowhere" in shown.desk.refused("view", "nowhere")
    port = shown.origin.rpartition(":")[2]
    assert f"--port {port}: Address already in use" in shown.desk.refused("view", "--port", port)
