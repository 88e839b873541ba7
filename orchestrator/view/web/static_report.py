"""report.html: a sweep's page in one file that needs no server, and its summary in Markdown.

What each trial left is in it as far as there is room, those first that are not solved; what is cut says how much there
is. Style and script are in the file, and its security policy names them by their hashes, so that nothing else runs.
"""

import base64
import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from markupsafe import Markup

from orchestrator.core.ledger import Trial
from orchestrator.core.records import TrialKey
from orchestrator.rundir.files import AGENT_LOG, open_regular
from orchestrator.rundir.recorded import RecordedSweep
from orchestrator.view.report import SOLVED, arm_columns, report
from orchestrator.view.web.markup import log_markup, patch_markup
from orchestrator.view.web.sweep_view import grid_of, render_parts, sweep_values
from orchestrator.view.web.templates import render
from orchestrator.view.web.trial_view import PATCH, Query, place_of

STATIC: Final = Path(__file__).parent / "static"
#: Bytes of the whole, of what trials left in it, and of one file of one trial.
MAX_BYTES: Final = 5_000_000
TRIALS_BYTES: Final = 4_000_000
FILE_BYTES: Final = 12_000
#: The least that is worth showing of a file; markup takes so much more than what it shows.
LEAST_BYTES: Final = 300
MARKUP_FACTOR: Final = 1.6
#: Bytes of a grid; one that is larger is left out.
GRID_BYTES: Final = 800_000
#: Lines of a trial: its title, its stages and scorers.
FACTS_BYTES: Final = 900
#: Trials that are listed in Markdown.
LISTED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """The part of a file that is shown, and the bytes that it has."""

    title: str
    classes: str
    html: Markup
    shown: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialExcerpt:
    """A finished trial in a report. `row` is None where its result cannot be read."""

    key: TrialKey
    scenario: str
    trial: Trial
    row: Mapping[str, Any] | None
    excerpts: Sequence[Excerpt]


def as_html(sweep: RecordedSweep) -> str:
    """Make the report of a sweep as it is now; fewer than MAX_BYTES, unless it has some ten thousand scenarios."""
    summary = report(sweep.ledger, sweep.plan, sweep.folder)
    style = (STATIC / "page.css").read_text()
    script = _joined("page.js", "sweep.js")
    grid = orjson.dumps(grid_of(sweep).as_dict())
    is_whole = len(grid) <= GRID_BYTES
    trials = list(_trials(sweep, TRIALS_BYTES - len(grid) * is_whole))
    left_out = sum(sweep.ledger.is_finished(key) for key in sweep.plan) - len(trials)
    return render(
        "report.html",
        {
            "name": sweep.name,
            "parts": render_parts(sweep_values(sweep, summary, time.time(), link="#")),
            "grid": as_block(grid) if is_whole else None,
            "style": Markup(style),  # noqa: S704 - ours
            "script": Markup(script),  # noqa: S704 - ours
            "policy": f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
            "base-uri 'none'; form-action 'none'",
            "trials": trials,
            "left_out": left_out,
            "cut": sum(each.shown < each.size for trial in trials for each in trial.excerpts),
        },
    )


def as_markdown(sweep: RecordedSweep) -> str:
    """Make a summary in Markdown, for a pull request."""
    summary = report(sweep.ledger, sweep.plan, sweep.folder)
    values = sweep_values(sweep, summary, time.time())
    failed = [
        (sweep.names[key.scenario], key, sweep.ledger.trials[key])
        for key in sweep.plan
        if sweep.ledger.is_finished(key) and sweep.ledger.trials[key].score is None
    ]
    columns = {heading: cells for group in arm_columns(summary.arms) for heading, cells in group.items()}
    return render(
        "report.md", {**values, "columns": columns, "failed": failed[:LISTED], "more": max(0, len(failed) - LISTED)}
    )


def as_block(json: bytes) -> Markup:
    """JSON for a data block of a page, which nothing inside can end."""
    escaped = json.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")
    return Markup(escaped.decode())  # noqa: S704 - see above


def _joined(*names: str) -> str:
    """Scripts that import one another as one, which has no file to import."""
    text = "".join((STATIC / name).read_text() for name in names)
    return re.sub(r"^(import .*\n|export )", "", text, flags=re.MULTILINE)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _trials(sweep: RecordedSweep, room: int) -> Iterator[TrialExcerpt]:
    """Yield finished trials in the plan's order, with what they left as far as there is room for it."""
    ledger, results = sweep.ledger, sweep.results
    finished = [key for key in sweep.plan if ledger.is_finished(key)]
    urgent = sorted(finished, key=lambda key: (ledger.trials[key].score or 0.0) >= SOLVED)
    chosen = set(urgent[: max(0, room // FACTS_BYTES)])
    room -= len(chosen) * FACTS_BYTES
    shares: dict[TrialKey, int] = {}
    for number, key in enumerate(key for key in urgent if key in chosen):
        share = min(FILE_BYTES, int(room / (len(chosen) - number) / 2 / MARKUP_FACTOR))
        if share < LEAST_BYTES:  # there is not enough for all: those first that are not solved get the least
            share = LEAST_BYTES if room >= 2 * MARKUP_FACTOR * LEAST_BYTES else 0
        shares[key] = share
        room -= int(2 * MARKUP_FACTOR * share)
    for key in finished:
        if key in chosen:
            place = place_of(sweep, Query(key=key))
            yield TrialExcerpt(
                key=key,
                scenario=sweep.names[key.scenario],
                trial=ledger.trials[key],
                row=results.get(key),
                excerpts=list(_excerpts(place, shares[key])),
            )


def _excerpts(place: Path, share: int) -> Iterator[Excerpt]:
    """Yield the beginning of the patch and the end of the log."""
    for name, title, is_end in ((PATCH, "Patch", False), (AGENT_LOG, "The agent's output", True)):
        with suppress(OSError), open_regular(place / name) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - share) if is_end else 0)
            data = file.read(share)
            if size:
                html = log_markup(data) if is_end else patch_markup(data)
                classes = "text" if is_end else "text patch"
                html = html if len(html) <= 2 * MARKUP_FACTOR * share else Markup("")
                yield Excerpt(title=title, classes=classes, html=html, shown=len(data) if html else 0, size=size)
