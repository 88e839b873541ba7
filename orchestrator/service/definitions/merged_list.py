"""One list made of two: what was created through the API, newest first, then what the catalog reads from folders.

The cursor is an id of either half, so a client pages across the seam without knowing of it. Of the catalog only names
are looked at to count and to place the cursor; the documents of the page asked for are all that is read.
Whether more follows is judged by names too: the last page may turn out empty when all that is left is broken.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Protocol, TypeVar

import orjson

from orchestrator.service.errors import NotFound
from orchestrator.service.serialization import view
from orchestrator.service.store import MAX_PAGE, Document, Filters, ListQuery, Page, Store, Table

#: Documents read at a time: a step may be larger than a page, a page of large ones is not.
_STEP: Final = 100

Read = Callable[[Sequence[str]], Awaitable[list[Document]]]
"""Ids to documents, in that order; those that cannot be read are left out."""


class Named(Protocol):
    """Something of the catalog, as far as a list needs to know it before it is read."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """The plainest of those."""

    id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam(Generic[N]):
    """The two halves of one list: the store's with `filters`, unless only the catalog's is shown, and the catalog's."""

    store: Store
    table: Table
    filters: Filters
    is_stored_shown: bool = True
    named: Sequence[N]
    is_match: Callable[[N], bool]
    read: Read
    shown: Callable[[sqlite3.Connection, Document], Document] = lambda _, document: document
    """A document of the store as it is answered."""

    async def page(self, query: ListQuery) -> Page:
        """One page. Raises NotFound when the cursor names nothing in either half."""
        after, ids, place = query.starting_after, list[str](), None
        for entry in self.named:
            if self.is_match(entry) and _is_found(entry, query):
                ids.append(entry.id)
            if entry.id == after:
                place = len(ids)
        if place is not None:
            stored = await self._stored(replace(query, limit=0, starting_after=None))
            first: Page = replace(stored, items=[], has_more=False)
            left = ids[place:]
        else:
            first = await self._stored(query)
            left = ids
        total = None if first.total_count is None else first.total_count + len(ids)
        if first.has_more:
            return replace(first, total_count=total)
        items, rest = await fill(left, query.limit - len(first.items), self.read)
        return Page(first.items + items, bool(rest), total)

    async def _stored(self, query: ListQuery) -> Page:
        if not self.is_stored_shown:
            if query.starting_after:
                raise NotFound(f"starting_after: there is no {self.table.noun} with id {query.starting_after!r}.")
            return Page([], has_more=False, total_count=0 if query.with_total else None)

        def read(db: sqlite3.Connection) -> Page:
            page = self.table.page(db, self.filters, query)
            return replace(page, items=[self.shown(db, each) for each in page.items])

        return await self.store.read(read)


async def fill(ids: Sequence[str], count: int, read: Read) -> tuple[list[Document], Sequence[str]]:
    """Read documents in the order of `ids` until there are `count`, or enough for a page: them, and the ids left."""
    items: list[Document] = []
    room = MAX_PAGE
    while ids and len(items) < count and room > 0:
        wanted = min(count - len(items), _STEP)
        found = await read(ids[:wanted])
        room -= sum(len(orjson.dumps(view(document))) for document in found)
        items += found
        ids = ids[wanted:]
    return items, ids


def _is_found(entry: Named, query: ListQuery) -> bool:
    return not query.search or query.search in entry.id or query.search.lower() in entry.name.lower()


def by_id(ids: Sequence[str], documents: Mapping[str, Any]) -> list[Document]:
    """The documents there are, in the order of the ids."""
    return [documents[identity] for identity in ids if identity in documents]
