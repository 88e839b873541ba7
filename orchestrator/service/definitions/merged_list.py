"""One list made of two: definitions created through the API, newest first, then those of folders.

The cursor is an id of either half, so a client pages across the seam without knowing of it. To count, and to place the
cursor, only the catalog's names are used; of its documents only those of the page are read.
`has_more` is judged by names too: the last page may turn out empty when all scenarios left are broken.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, Protocol, TypeVar

import orjson

from orchestrator.service.errors import NotFound
from orchestrator.service.records import view
from orchestrator.service.store import MAX_PAGE, Document, Filters, ListQuery, Page, Store, Table

#: Documents read at a time: a step may be larger than a page, a page of large ones is not.
_STEP: Final = 100

Read = Callable[[Sequence[str]], Awaitable[list[Document]]]
"""Ids to documents, in that order; those that cannot be read are left out."""


class Named(Protocol):
    """A definition of the catalog before it is read."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


class Known(Named, Protocol):
    """A definition of the catalog that is its own document."""

    def document(self) -> Document: ...


N = TypeVar("N", bound=Named)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedList(Generic[N]):
    """The two halves of one list: the store's with `filters`, shown if `is_stored_shown`, and the catalog's.

    `named` are all definitions of the catalog, `is_match` is their filter. `shown` changes a document of the store to
    the answered one.
    """

    store: Store
    table: Table[Document]
    filters: Filters
    is_stored_shown: bool = True
    named: Sequence[N]
    is_match: Callable[[N], bool]
    read: Read
    shown: Callable[[sqlite3.Connection, Document], Document] = lambda _, document: document

    async def page(self, query: ListQuery) -> Page[Document]:
        """Read one page. Raises NotFound when the cursor names nothing in either half."""
        ids: list[str] = []
        place = None
        text = query.search
        for each in self.named:
            is_found = not text or text in each.id or text.lower() in each.name.lower()
            if is_found and self.is_match(each):
                ids.append(each.id)
            if each.id == query.starting_after:
                place = len(ids)
        if place is None:
            first, left = await self._stored(query), ids
        else:  # the cursor is in the second half: of the first one only the number is wanted
            counted = await self._stored(replace(query, limit=0, starting_after=None))
            first, left = replace(counted, items=[], has_more=False), ids[place:]

        total = None if first.total_count is None else first.total_count + len(ids)
        if first.has_more:
            return replace(first, total_count=total)
        items, rest = await fill(left, query.limit - len(first.items), self.read)
        return Page(first.items + items, bool(rest), total)

    async def _stored(self, query: ListQuery) -> Page[Document]:
        if not self.is_stored_shown:
            if query.starting_after:
                raise NotFound(f"starting_after: there is no {self.table.noun} with id {query.starting_after!r}.")
            return Page([], has_more=False, total_count=0 if query.with_total else None)

        def read(db: sqlite3.Connection) -> Page[Document]:
            page = self.table.page(db, self.filters, query)
            return replace(page, items=[self.shown(db, each) for each in page.items])

        return await self.store.read(read)


def reader(known: Sequence[Known]) -> Read:
    """Read definitions that need no file."""
    by_id = {each.id: each for each in known}

    async def read(ids: Sequence[str]) -> list[Document]:
        return [by_id[identity].document() for identity in ids]

    return read


async def fill(ids: Sequence[str], count: int, read: Read) -> tuple[list[Document], Sequence[str]]:
    """Read documents in the order of `ids` until there are `count`, or enough for a page; return the ids left too."""
    items: list[Document] = []
    room = MAX_PAGE
    while ids and len(items) < count and room > 0:
        wanted = min(count - len(items), _STEP)
        found = await read(ids[:wanted])
        room -= sum(len(orjson.dumps(view(document))) for document in found)
        items += found
        ids = ids[wanted:]
    return items, ids
