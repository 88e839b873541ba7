"""The application: who may ask, the routes, and live events. It changes nothing, so every route is a GET.

Who may ask: this machine only, by the names of loopback, so that no page elsewhere can reach it under a name of its
own; and who has the token, which comes once in a link and then as a cookie that scripts cannot read. Programs, such as
Prometheus, have it in a header.
"""

import hmac
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import anyio
import orjson
from markupsafe import Markup
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.core.errors import SweepError, UsageError
from orchestrator.core.printable import printable
from orchestrator.core.records import TrialKey
from orchestrator.rundir.files import AGENT_LOG
from orchestrator.rundir.sweep_index import run_folders
from orchestrator.view.metrics import CONTENT_TYPE, Metric, metrics_of_recorded, prometheus_text
from orchestrator.view.web.compare_view import CompareView, compare_view
from orchestrator.view.web.markup import find, read_piece
from orchestrator.view.web.static_report import STATIC, as_block
from orchestrator.view.web.templates import address_of, environment, render
from orchestrator.view.web.trial_view import Query, file_of, find_trial, progress_of, trial_parts, trial_view
from orchestrator.view.web.watched import KEPT, SweepPicture, WatchedSweep, WatchedSweeps, changes, version_of

#: Names of this machine that only it gives to itself.
LOOPBACK: Final = ("127.0.0.1", "localhost")
#: Pages load what is ours, run no script and style that is in their text, and are in no frame.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
#: The time between two looks for what is new, of one sweep and of all.
LOOK_S: Final = 1.0
LOOK_AT_ALL_S: Final = 3.0
#: Digits of a number in an address.
MAX_DIGITS: Final = 15
#: Sweeps that the list shows, unless all are asked for.
LISTED: Final = 50


def application(runs: Path, token: str, port: int) -> Starlette:
    """The pages of the sweeps below `runs`, for who has the token; `port` is the one that it is served on."""
    site = _Site(runs)
    for name in environment().list_templates():  # compiled now, the first page need not wait for it
        environment().get_template(name)
    return Starlette(
        routes=[
            Route("/", site.sweeps),
            Route("/live", site.live_sweeps),
            Route("/compare", site.compare),
            Route("/metrics", site.metrics),
            Route("/sweep/{name}/", site.sweep),
            Route("/sweep/{name}/live", site.live_sweep),
            Route("/sweep/{name}/trial", site.trial),
            Route("/sweep/{name}/trial-live", site.live_trial),
            Route("/sweep/{name}/log", site.log),
            Route("/sweep/{name}/file", site.file),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[
            Middleware(_SafeHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK), www_redirect=False),
            Middleware(_Door, token=token, cookie=f"sweep_view_{port}"),
        ],
        exception_handlers={SweepError: _sweep_error, HTTPException: _http_error, Exception: _mistake},
    )


class _Site:
    """The routes, and what they share."""

    def __init__(self, runs: Path) -> None:
        self._watched = WatchedSweeps(runs)
        #: Comparisons of thousands of trials take seconds, and impatience must not make them longer.
        self._one_at_a_time = anyio.CapacityLimiter(1)
        #: The last comparison, and what was asked for then with the versions of its sweeps.
        self._compared: tuple[object, CompareView] | None = None
        #: Why sweeps cannot be read, by name.
        self._broken: dict[str, str] = {}

    async def sweeps(self, request: Request) -> Response:
        """The list as far as it is known; what is not, comes live."""
        is_all = "all" in request.query_params
        table = self._table(*await self._listed(is_all=is_all))
        return _page("sweeps.html", runs=str(self._watched.runs), table=table, all=is_all)

    async def live_sweeps(self, request: Request) -> Response:
        is_all = "all" in request.query_params

        async def stream() -> AsyncIterator[ServerSentEvent]:
            shown = Markup("")
            while True:
                names, more = await self._listed(is_all=is_all)
                for at, name in enumerate(names, 1):
                    is_new = self._watched.known(name) is None
                    await self._read(name)
                    if (is_new or at == len(names)) and (table := self._table(names, more)) != shown:
                        shown = table
                        yield _event("parts", {"sweeps": table}, "")
                await anyio.sleep(LOOK_AT_ALL_S)

        return _live(stream())

    async def _listed(self, *, is_all: bool) -> tuple[Sequence[str], int]:
        """The names of the sweeps to list, newest first, and the number of those that are not."""
        found = await anyio.to_thread.run_sync(lambda: [folder.name for folder in run_folders(self._watched.runs)])
        shown = found if is_all else found[:LISTED]
        return shown, len(found) - len(shown)

    async def _read(self, name: str) -> None:
        self._broken.pop(name, None)
        try:
            await self._watched.totals(name)
        except SweepError as error:
            self._broken[name] = error.message

    def _table(self, names: Sequence[str], more: int) -> Markup:
        macros: Any = environment().get_template("_sweeps.html").module
        rows = [(name, self._watched.known(name), self._broken.get(name)) for name in names]
        table: Markup = macros.sweeps(rows, more)
        return table

    async def sweep(self, request: Request) -> Response:
        name = request.path_params["name"]
        picture = await self._watched.find(name).picture()
        return _page(
            "sweep.html",
            name=name,
            parts=picture.parts,
            seen=picture.number,
            grid=as_block(orjson.dumps(picture.grid.as_dict())),
        )

    async def live_sweep(self, request: Request) -> Response:
        seen = request.query_params.get("seen", "")

        async def stream() -> AsyncIterator[ServerSentEvent]:
            watched = self._watched.find(request.path_params["name"])
            shown: SweepPicture | None = None
            while True:
                picture = await watched.picture()
                if shown is None and picture.number == seen:
                    shown = picture
                parts = {
                    name: html for name, html in picture.parts.items() if shown is None or shown.parts[name] != html
                }
                if (grid := changes(picture.grid, None if shown is None else shown.grid)) is not None:
                    yield _event("grid", grid, picture.number)
                if parts:
                    yield _event("parts", parts, picture.number)
                shown = picture
                await anyio.sleep(LOOK_S)

        return _live(stream())

    async def metrics(self, _: Request) -> Response:
        """The numbers of the newest sweeps, for Prometheus; a sweep that cannot be read is left out."""
        names, _rest = await self._listed(is_all=False)
        found: list[Metric] = []
        for name in names[:KEPT]:
            with suppress(SweepError):
                found += await self._watched.find(name).ask(metrics_of_recorded, time.time())
        return Response(prometheus_text(found), media_type=CONTENT_TYPE)

    async def compare(self, request: Request) -> Response:
        given = request.query_params
        folders = [self._watched.folder(name) for name in dict.fromkeys(given.getlist("run"))]
        if not folders:
            raise UsageError("Choose the sweeps to compare in the list of sweeps.")
        sides, anyway = given.getlist("side"), "anyway" in given

        def compared() -> CompareView:
            asked = sides, anyway, [(folder, version_of(folder)) for folder in folders]
            if self._compared is None or self._compared[0] != asked:
                self._compared = asked, compare_view(folders, sides, anyway=anyway)
            return self._compared[1]

        return _page("compare.html", view=await anyio.to_thread.run_sync(compared, limiter=self._one_at_a_time))

    async def trial(self, request: Request) -> Response:
        watched, query = await self._asked(request)
        view = await watched.ask(trial_view, query)
        return _page("trial.html", name=request.path_params["name"], view=view, address=_address(query))

    async def live_trial(self, request: Request) -> Response:
        async def stream() -> AsyncIterator[ServerSentEvent]:
            watched, query = await self._asked(request)
            shown: Mapping[str, Markup] = {}
            last = None
            while True:
                if (now := await watched.ask(progress_of, query)) != last:
                    parts = await watched.ask(trial_parts, query, _address(query))
                    changed = {name: html for name, html in parts.items() if shown.get(name) != html}
                    yield _event("parts", changed, "")
                    shown, last = parts, now
                await anyio.sleep(LOOK_S)

        return _live(stream())

    async def log(self, request: Request) -> Response:
        """A piece of a file of an attempt: from byte `at`, or the one that ends `before`, or the end."""
        watched, query = await self._asked(request)
        name, text = request.query_params.get("file", AGENT_LOG), request.query_params.get("find")
        at, before = (_number(request, each) for each in ("at", "before"))
        path, is_over = await watched.ask(file_of, query, name)

        def read() -> dict[str, Any]:
            if path is None:
                return {"html": "", "begin": 0, "end": 0, "size": 0}
            place = find(path, text, at or 0) if text else at
            if text and place is None:
                return {"missing": True, "size": path.stat().st_size}
            is_near = "near" in request.query_params
            return asdict(read_piece(path, at=place, before=before, is_near=is_near, is_over=is_over))

        try:
            found = await anyio.to_thread.run_sync(read)
        except OSError as error:
            raise UsageError(f"{name} cannot be read: {error.strerror}.") from None
        return Response(
            orjson.dumps({**found, "over": is_over}),
            media_type="application/json",
            headers={"cache-control": "no-store"},
        )

    async def file(self, request: Request) -> Response:
        """A file of an attempt, to be saved: no browser opens what an agent made."""
        watched, query = await self._asked(request)
        path, _ = await watched.ask(file_of, query, request.query_params.get("file", AGENT_LOG))
        if path is None:
            raise UsageError("The agent has printed nothing yet.")
        return FileResponse(path, filename=path.name, media_type="application/octet-stream")

    async def _asked(self, request: Request) -> tuple[WatchedSweep, Query]:
        """The sweep, and the trial that the address names. Raises UsageError if there is none."""
        watched = self._watched.find(request.path_params["name"])
        given = request.query_params
        key = TrialKey(given.get("scenario", ""), given.get("arm", ""), _number(request, "n") or 1)
        query = Query(
            key=key, attempt=_number(request, "attempt"), step=given.get("step"), turn=_number(request, "turn") or 0
        )
        return watched, await watched.ask(find_trial, query)


def _number(request: Request, name: str) -> int | None:
    """A whole number of the address; None if it has none. Raises UsageError."""
    text = request.query_params.get(name)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise UsageError(f"{name}={text!r}: a whole number was expected.")
    return int(text)


def _address(query: Query) -> str:
    """The part of an address that names a trial, and the part of it that is shown."""
    more = {name: value for name, value in (("attempt", query.attempt), ("step", query.step)) if value is not None}
    return address_of(query.key, **more)


def _page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    return HTMLResponse(render(template, values), status, {"cache-control": "no-store"})


def _event(name: str, value: object, number: str) -> ServerSentEvent:
    data = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    return ServerSentEvent(data, event=name, id=number)


def _live(events: AsyncIterator[ServerSentEvent]) -> Response:
    """Send events as long as somebody looks. What cannot be shown, or not any more, is told, and ends them.

    No status tells it, because a browser keeps that of an answer without events from the page that asked.
    """

    async def until_trouble() -> AsyncIterator[ServerSentEvent]:
        try:
            async for event in events:
                yield event
        except SweepError as error:
            yield _event("trouble", printable(error.message), "")

    return EventSourceResponse(until_trouble())


async def _sweep_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, SweepError)
    status, title = (404, "Not found") if isinstance(error, UsageError) else (500, "Cannot be read")
    return _page("error.html", status, title=title, message=error.message)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _page("error.html", error.status_code, title=str(error.status_code), message=str(error.detail))


async def _mistake(_request: Request, _error: Exception) -> Response:
    """A mistake of ours, which the server logs with its traceback. Nothing of it is on the page."""
    message = "This is a mistake of sweep's own. The terminal of `sweep view` says what went wrong."
    page = _page("error.html", 500, title="Something went wrong", message=message)
    page.headers.update(HEADERS)  # it is made outside of what adds them
    return page


class _SafeHeaders:
    """Sends the headers that bind browsers with every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, sending)


def _bearer(request: Request) -> str:
    """The token in the header of a program."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token if kind.lower() == "bearer" else ""


class _Door:
    """Lets in who has the token: in the link once, which is then a link without it and a cookie; or in a header."""

    def __init__(self, app: ASGIApp, *, token: str, cookie: str) -> None:
        self._app = app
        self._token = token
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        answer: ASGIApp = self._app
        if request.method not in {"GET", "HEAD"}:
            answer = PlainTextResponse("Pages are read only.", 405)
        elif self._is_ours(request.query_params.get("token", "")):
            rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
            to = f"{request.url.path}?{urlencode(rest)}" if rest else request.url.path
            answer = RedirectResponse(to, 303, {"cache-control": "no-store"})
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="lax")
        elif not self._is_ours(request.cookies.get(self._cookie, "")) and not self._is_ours(_bearer(request)):
            answer = PlainTextResponse("Open the link that `sweep view` printed: it has the key to these pages.", 403)
        await answer(scope, receive, send)

    def _is_ours(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._token.encode())
