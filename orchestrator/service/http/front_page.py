"""The page at the service's own address, for a person with a browser: what this is, and how to look at sweeps.

It tells everybody what the address is, and who shows the token in the link which sweeps have runs here. The service
knows sweeps by their ids only: what they are is in the folders of those who run them.
"""

import hmac
from datetime import UTC, datetime
from html import escape
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from orchestrator import __version__
from orchestrator.core.printable import counted, printable
from orchestrator.core.protocol import BenchmarkRunState
from orchestrator.service.http.app import IDENTITY, is_person
from orchestrator.service.records import BenchmarkRunRecord
from orchestrator.service.store import BENCHMARK_RUNS, ListQuery, Store

#: Benchmark runs that are looked through, the newest.
NEWEST: Final = 1000
_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>sweep: benchmark service</title>
<main>
<h1>sweep: benchmark service</h1>
<p>{identity}</p>
<p>Version {version}. It has no pages of its own. Where sweeps were started, <code>sweep view</code> shows them in a
browser and <code>sweep list</code> at a terminal; <code>sweep docs service</code> tells more of this service.</p>
{sweeps}
</main>
</html>
"""
_UNSHOWN: Final = (
    "<p>The sweeps that have runs here are listed at <code>/?token=KEY</code>, with the service's key.</p>"
)
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class FrontPage:
    """The route of the page; programs that ask for it are told, as for any other, that there is no such route."""

    def __init__(self, store: Store, token: str) -> None:
        self._store = store
        self._token = token

    def routes(self) -> list[Route]:
        return [Route("/", self.show, methods=["GET"])]

    async def show(self, request: Request) -> HTMLResponse:
        if not is_person(request.scope):
            raise HTTPException(404)
        sweeps = _UNSHOWN
        if hmac.compare_digest(request.query_params.get("token", "").encode(), self._token.encode()):
            found = await self._store.read(lambda db: BENCHMARK_RUNS.page(db, {}, ListQuery(limit=NEWEST)))
            sweeps = _table(found.items)
        page = _PAGE.format(identity=escape(IDENTITY), version=escape(__version__), sweeps=sweeps)
        return HTMLResponse(page, headers=_HEADERS)


def _table(runs: list[BenchmarkRunRecord]) -> str:
    """The sweeps of these benchmark runs, newest first."""
    by_sweep: dict[str, list[BenchmarkRunRecord]] = {}
    for run in runs:
        if sweep := run.metadata.get("sweep"):
            by_sweep.setdefault(sweep, []).append(run)
    if not by_sweep:
        return "<p>No sweep has runs here.</p>"
    rows = []
    for sweep, its in by_sweep.items():
        running = sum(run.state is BenchmarkRunState.RUNNING for run in its)
        began = datetime.fromtimestamp(min(run.start_time_ms for run in its) / 1000, UTC)
        arms = ", ".join(sorted({run.metadata.get("arm", "") for run in its}))
        state = f"{counted(running, 'benchmark run')} running" if running else "nothing running"
        cells = (sweep, arms, f"{began:%Y-%m-%d %H:%M}", state)
        rows.append(f"<tr>{''.join(f'<td>{escape(printable(cell))}</td>' for cell in cells)}</tr>")
    head = "<tr><th>sweep</th><th>arms</th><th>started, UTC</th><th>state</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"
