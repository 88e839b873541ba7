"""Who may ask for pages, what binds browsers, and what addresses lead to: without a browser."""

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import httpx
import orjson
import pytest

from orchestrator.commands import write_report
from orchestrator.common import locks
from orchestrator.core.errors import JournalError
from orchestrator.core.events import SweepEnded, to_line
from orchestrator.rundir import repair
from orchestrator.rundir.recorded import RecordedSweep, SweepState
from orchestrator.view.web import site, watched
from orchestrator.view.web.compare_view import CompareView, compare_view
from orchestrator.view.web.site import application
from orchestrator.view.web.static_report import MAX_BYTES, as_html, as_markdown
from scripts import demo_sweep

pytestmark = pytest.mark.anyio
TOKEN: Final = "the-token-of-the-link"
COOKIE: Final = {"sweep_view_1": TOKEN}
ORIGIN: Final = "http://127.0.0.1:1"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    demo_sweep.write(folder / "nightly", scenarios=6, arms=2)
    return folder


@pytest.fixture
async def stranger(runs: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(application(runs, TOKEN, 1))
    async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
        yield client


@pytest.fixture
async def known(runs: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(application(runs, TOKEN, 1))
    async with httpx.AsyncClient(transport=transport, base_url=ORIGIN, cookies=COOKIE) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/sweep/nightly/", "/static/page.css", "/nothing", "/?token=wrong", "/?token=ß"])
async def test_without_the_token_there_is_no_page(stranger: httpx.AsyncClient, path: str) -> None:
    answer = await stranger.get(path)
    assert answer.status_code == 403
    assert "sweep view" in answer.text
    assert "nightly" not in answer.text


async def test_the_token_comes_once_in_a_link_and_then_as_a_cookie_of_the_browser_only(
    stranger: httpx.AsyncClient,
) -> None:
    answer = await stranger.get("/sweep/nightly/?show=failed&token=" + TOKEN)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/sweep/nightly/?show=failed"
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "samesite=lax" in answer.headers["set-cookie"].lower()
    assert (await stranger.get(answer.headers["location"])).status_code == 200


async def test_other_names_of_this_machine_and_other_methods_are_refused(known: httpx.AsyncClient) -> None:
    assert (await known.get("/", headers={"host": "evil.example"})).status_code == 400
    assert (await known.get("/", headers={"host": "localhost:1"})).status_code == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert (await known.request(method, "/")).status_code == 405


async def test_every_answer_binds_the_browser(known: httpx.AsyncClient) -> None:
    for path in ("/", "/sweep/nightly/", "/nothing", "/static/page.js", "/compare?run=nightly", "/sweep/nothing/"):
        answer = await known.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "style=" not in answer.text


async def test_addresses_lead_to_files_of_the_attempt_only(known: httpx.AsyncClient, runs: Path) -> None:
    sweep = RecordedSweep(runs / "nightly")
    key = next(iter(sweep.plan))
    place = sweep.attempt_folder(key, 1)
    link = place / "link"
    link.unlink(missing_ok=True)
    link.symlink_to("/etc/passwd")
    trial = f"scenario={key.scenario}&arm={key.arm}&n=1"
    for file in ("../attempt-1/../../../../../manifest.json", "/etc/passwd", "link", "nothing", "."):
        for route in ("log", "file"):
            assert (await known.get(f"/sweep/nightly/{route}?{trial}&file={file}")).status_code == 404, file
    saved = await known.get(f"/sweep/nightly/file?{trial}&file=patch.diff")
    assert saved.headers["content-disposition"].startswith("attachment")
    assert saved.headers["content-type"] == "application/octet-stream"
    for wrong in (
        "/sweep/%2e%2e/",
        "/sweep/nothing/",
        "/compare?run=..%2fx",
        f"/sweep/nightly/trial?{trial}9",
        f"/sweep/nightly/log?{trial}&at=x",
        "/sweep/nightly/trial?scenario=nothing&arm=large&n=1",
    ):
        assert (await known.get(wrong)).status_code == 404, wrong


async def test_a_damaged_sweep_is_named_and_hides_no_other(tmp_path: Path) -> None:
    for name in ("sound", "broken", "cut"):
        demo_sweep.write(tmp_path / name, scenarios=2, arms=1)
    (tmp_path / "cut" / "manifest.json").write_text("{")
    with (tmp_path / "broken" / "journal.jsonl").open("r+b") as journal:
        journal.write(b"?")
    transport = httpx.ASGITransport(application(tmp_path, TOKEN, 1))
    async with httpx.AsyncClient(transport=transport, base_url=ORIGIN, cookies=COOKIE) as client:
        answer = await client.get("/sweep/broken/")
        assert answer.status_code == 500
        assert "line 1, byte 0: this line is damaged" in answer.text
        assert (await client.get("/sweep/sound/")).status_code == 200
        listed = (await client.get("/")).text
        assert "broken" in listed
        assert "cut" in listed
        assert "manifest.json is damaged" in (await client.get("/sweep/cut/")).text


@pytest.mark.parametrize("path", ["/sweep/nothing/live", "/sweep/nightly/trial-live?scenario=nothing&arm=large"])
async def test_live_events_of_what_is_not_there_say_so_and_end(known: httpx.AsyncClient, path: str) -> None:
    """A browser keeps the status of such an answer from the page, which would ask for ever."""
    answer = await known.get(path)
    assert answer.status_code == 200
    assert "event: trouble" in answer.text
    assert "There is no s" in answer.text


async def test_a_mistake_of_ours_is_a_page_that_tells_nothing_of_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the words of a mistake")

    monkeypatch.setattr(site, "compare_view", broken)
    transport = httpx.ASGITransport(application(runs, TOKEN, 1), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=ORIGIN, cookies=COOKIE) as client:
        answer = await client.get("/compare?run=nightly")
    assert answer.status_code == 500
    assert "<h1>Something went wrong</h1>" in answer.text
    assert "the words of a mistake" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_a_comparison_is_made_again_only_when_one_of_its_sweeps_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Sequence[Path]] = []

    def counted(folders: Sequence[Path], chosen: Sequence[str], *, anyway: bool) -> CompareView:
        made.append(folders)
        return compare_view(folders, chosen, anyway=anyway)

    monkeypatch.setattr(site, "compare_view", counted)
    for name in ("before", "after"):
        demo_sweep.write(tmp_path / name, scenarios=2, arms=1)
    transport = httpx.ASGITransport(application(tmp_path, TOKEN, 1))
    async with httpx.AsyncClient(transport=transport, base_url=ORIGIN, cookies=COOKIE) as client:
        first, second = [await client.get("/compare?run=before&run=after") for _ in range(2)]
        assert first.text == second.text
        assert len(made) == 1
        await client.get("/compare?run=after&run=before")
        assert len(made) == 2
        os.utime(tmp_path / "before" / "journal.jsonl")
        await client.get("/compare?run=after&run=before")
        assert len(made) == 3
        assert "choose them here" in (await client.get("/compare?run=after")).text


async def test_a_sweep_that_ends_a_moment_after_its_last_event_is_shown_as_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looked in between has seen all events already."""
    monkeypatch.setattr(watched, "PAUSE_S", 0)
    monkeypatch.setattr(watched, "TIMES", 0)
    demo_sweep.write(tmp_path / "night", scenarios=2, arms=1)
    sweep = watched.WatchedSweep(tmp_path / "night")
    with locks.hold(tmp_path / "night"):
        assert (await sweep.picture()).state is SweepState.RUNNING
    ended = await sweep.picture()
    assert ended.state is SweepState.FINISHED
    assert await sweep.picture() is ended, "nothing is drawn again for nothing"


@pytest.mark.parametrize("change", ["another sweep", "a repair"])
async def test_a_journal_that_is_another_is_read_from_its_start(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "night"
    demo_sweep.write(folder, scenarios=4, arms=1)
    sweep = watched.WatchedSweep(folder)
    assert await sweep.ask(lambda found: len(found.ledger.finished)) == 4
    if change == "another sweep":
        shutil.rmtree(folder)
        demo_sweep.write(folder, scenarios=2, arms=1, seed=2)
        assert await sweep.ask(lambda found: len(found.ledger.finished)) == 2
    else:
        damaged = (folder / "journal.jsonl").read_bytes()
        with (folder / "journal.jsonl").open("ab") as journal:
            journal.write(b"?\n")
        with pytest.raises(JournalError, match="this line is damaged"):
            await sweep.ask(lambda found: found.state)
        repair.repair(folder)
        assert (folder / "journal.jsonl").read_bytes() == damaged
        assert await sweep.ask(lambda found: len(found.ledger.finished)) == 4


async def test_a_sweep_is_drawn_no_more_often_because_one_of_its_trials_is_looked_at(tmp_path: Path) -> None:
    demo_sweep.write(tmp_path / "night", scenarios=2, arms=1)
    sweep = watched.WatchedSweep(tmp_path / "night")
    picture = await sweep.picture()
    with (tmp_path / "night" / "journal.jsonl").open("ab") as journal:
        journal.write(to_line(SweepEnded(reason="stopped: by me", at=2e9)))
    assert await sweep.ask(lambda found: found.state) is SweepState.STOPPED
    assert await sweep.picture() is picture


def test_a_report_stays_below_its_bound_and_says_what_is_cut(tmp_path: Path) -> None:
    demo_sweep.write(tmp_path / "wide", scenarios=125)
    sweep = RecordedSweep(tmp_path / "wide")
    for key in sweep.plan:
        place = sweep.attempt_folder(key, 1)
        (place / "agent.log").write_bytes(b"\x1b[31m<&>\x07\x1b[0m\n" * 4000)
        (place / "patch.diff").write_bytes(b"+a\n" * 20_000)
    html = as_html(sweep)
    assert len(html.encode()) < MAX_BYTES
    assert "files are cut here" in html
    assert "of 60000 bytes" in html
    assert as_markdown(sweep).count("\n| `") == len(sweep.plan.arms)


@pytest.mark.parametrize("damage", ["arms", "trials", "links", "report"])
async def test_a_folder_of_a_stranger_harms_nobody(tmp_path: Path, damage: str) -> None:
    """Values that no sweep has are an error of that sweep alone; links and pipes lead nowhere."""
    for name in ("sound", "strange"):
        demo_sweep.write(tmp_path / name, scenarios=1, arms=1)
    folder, secret = tmp_path / "strange", tmp_path / "secret"
    secret.write_text("a key of mine")
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    sweep = RecordedSweep(folder)
    (key,) = sweep.plan
    place = sweep.attempt_folder(key, 1)
    if damage == "arms":
        del manifest["config"]["arms"]
    elif damage == "trials":
        manifest["config"]["trials"] = 10**9
    elif damage == "links":
        (place / "patch.diff").unlink()
        os.mkfifo(place / "patch.diff")
        (place / "agent.log").unlink(missing_ok=True)
        (place / "agent.log").symlink_to(secret)
    else:
        (folder / ".report.html.new").symlink_to(secret)
        write_report.run(folder, is_markdown=False, target=None)
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    transport = httpx.ASGITransport(application(tmp_path, TOKEN, 1), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=ORIGIN, cookies=COOKIE) as client:
        answer = await client.get("/sweep/strange/")
        trial = await client.get(f"/sweep/strange/trial?scenario={key.scenario}&arm={key.arm}")
        assert ("is damaged" in answer.text) == (damage in {"arms", "trials"})
        assert secret.read_text() not in answer.text + trial.text
        compared = await client.get("/compare?run=strange")
        assert compared.status_code == (500 if damage in {"arms", "trials"} else 200)
        assert ("is damaged" in compared.text) == (damage in {"arms", "trials"})
        assert 'sweep="sound"' in (await client.get("/metrics")).text
    if damage == "links":
        assert secret.read_text() not in as_html(RecordedSweep(folder))
    assert secret.read_text() == "a key of mine"
