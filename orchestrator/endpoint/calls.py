"""One call of the endpoint: made, read as a record of ours, repeated, waited for.

The client retries nothing. An answer counts only if it has the shape of that call's answer: the answer of a proxy, a
portal or a balancer is trouble on the way, and the call is made again.

Why not the client's own retries and waiters: they hammer a dead endpoint, give up after two minutes, and run inside
our deadlines without telling us. Here the caller's deadline bounds everything, by the loop's clock.
"""

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

import anyio
import httpx
from httpx import codes
from runloop_api_client import APIStatusError, AsyncRunloop

from orchestrator.core.errors import Missing, Refused, Throttled, Unavailable
from orchestrator.endpoint import parsing
from orchestrator.endpoint.errors import translated

T = TypeVar("T")
V = TypeVar("V")

PAGE_ITEMS: Final = 5000
#: The pause after a first failed try; it doubles up to the longest one.
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 30.0
#: The time that a long-poll asks for; endpoints grant 25 to 30 s. The client gives up on it a little later.
HOLD_S: Final = 20.0
_HOLD_SLACK_S: Final = 10.0
#: An endpoint that can do more than the published protocol must say so within this time.
_FACTS_TIMEOUT_S: Final = 10.0


class Backoff:
    """The pauses between the tries of one call: they double, with jitter, and are never shorter than asked for."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE_S

    def next(self, asked: float | None = None) -> float:
        """Return the next pause, of at least `asked` seconds."""
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE_S)
        return max(asked or 0.0, pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter

    def reset(self) -> None:
        """Begin again with the first pause, because a try has got further than the one before it."""
        self._pause = FIRST_PAUSE_S


async def patiently(what: str, call: Callable[[], Awaitable[T]]) -> T:
    """Call until it is answered; `what` names the call, for messages.

    Raises the last fault once the caller's deadline leaves no time for another try.
    """
    backoff = Backoff()
    while True:
        try:
            with translated(what):
                return await call()
        except (Unavailable, Throttled) as fault:
            pause = backoff.next(fault.retry_after)
            if anyio.current_time() + pause >= anyio.current_effective_deadline():
                raise
            await anyio.sleep(pause)


async def poll(ask: Callable[[], Awaitable[T]], is_done: Callable[[T], bool], *, longest: float = 2.0) -> T:
    """Ask until `is_done` accepts the answer: often at first, then every `longest` seconds."""
    pause = 0.05
    while not is_done(answer := await ask()):
        await anyio.sleep(pause)
        pause = min(1.5 * pause, longest)
    return answer


async def hold(ask: Callable[[], Awaitable[T | None]]) -> T:
    """Repeat a long-poll until it answers; None is "not yet". At most once a second if it is not held."""
    while True:
        asked_at = anyio.current_time()
        answer = await ask()
        if answer is not None:
            return answer
        await anyio.sleep(max(0.0, asked_at + 1.0 - anyio.current_time()))


class Ask(Protocol):
    """Calls until there is an answer, as `Calls` does."""

    async def __call__(self, what: str, call: Callable[[], Awaitable[V]], read: Callable[[V], T]) -> T: ...


class Calls:
    """The base of the gateway's parts: a client, and the ways to ask with it."""

    def __init__(self, client: AsyncRunloop, url: str) -> None:
        self._client = client
        self._url = url
        self._facts: Mapping[str, Any] | None = None
        self._asking_facts = anyio.Lock()
        self._answered_at = anyio.current_time()

    async def features(self) -> frozenset[str]:
        return parsing.features(await self._own_facts())

    async def _own_facts(self) -> Mapping[str, Any]:
        """The facts that a service of ours tells about itself; none for a foreign endpoint.

        Cached: a replacement service is started with the same options.
        """

        def call() -> Awaitable[dict[str, Any]]:
            return self._client.get("/v1/sweep", cast_to=dict[str, Any])

        async with self._asking_facts:
            if self._facts is None:
                try:
                    with anyio.fail_after(_FACTS_TIMEOUT_S):
                        self._facts = await self._ask("asking what the endpoint can do", call, parsing.facts)
                except Missing:
                    self._facts = {}
                except Unavailable as error:  # not every endpoint has a 404 in its own form for an unknown route
                    if error.status != codes.NOT_FOUND:
                        raise
                    self._facts = {}
                except TimeoutError:
                    raise Unavailable(f"{self._url} did not say in {_FACTS_TIMEOUT_S:g} s what it can do") from None
        return self._facts

    async def _ask(self, what: str, call: Callable[[], Awaitable[V]], read: Callable[[V], T]) -> T:
        """Call until there is an answer, and `read` it as a record of ours; `what` names the call, for messages."""
        return await patiently(what, lambda: self._ask_once(what, call, read))

    async def _ask_once(self, what: str, call: Callable[[], Awaitable[V]], read: Callable[[V], T]) -> T:
        """Call once, and `read` the answer as a record of ours."""
        try:
            with parsing.shaped(what), translated(what):
                view = await call()
                if isinstance(view, str):  # the client returns the text of an answer that is not JSON
                    raise TypeError(f"it is not JSON, but {view[:100]!r}")
                answer = read(view)
        except (Refused, Throttled):
            self._answered_at = anyio.current_time()
            raise
        self._answered_at = anyio.current_time()
        return answer

    async def _all(self, what: str, lister: Callable[..., Awaitable[Any]], read: Callable[[V], T]) -> list[T]:
        """Read every item of a list, again from its first page if one fails. May have one twice: compare their ids."""

        async def walk() -> list[T]:
            page, found = await lister(limit=PAGE_ITEMS, include_total_count=False), list[T]()
            while True:
                found += map(read, parsing.items(page))
                if not page.has_next_page():
                    return found
                page = await page.get_next_page()

        return await self._ask(what, walk, list[T])

    async def _long_poll(self, path: str, statuses: list[str], cast_to: type[T], held: float = HOLD_S) -> T | None:
        """Wait for one of the `statuses`, for so many seconds; None is "not yet"."""
        try:
            view = await self._client.post(
                path,
                body={"statuses": statuses, "timeout_seconds": held},
                cast_to=cast_to,
                options={"timeout": httpx.Timeout(held + _HOLD_SLACK_S, connect=10)},
            )
            return parsing.said(view)
        except APIStatusError as error:
            if error.response.status_code == codes.REQUEST_TIMEOUT:
                return None
            raise
