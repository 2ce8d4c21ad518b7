"""A list of the API that is read page by page while somebody goes through it.

Owns the paging. Refuses to hold more than a page: `all` is for whoever wants the whole list.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Generic, TypeVar, cast

from api.client.connection import Connection

PAGE = 500
"""Items of a page: the most that the API gives."""
T = TypeVar("T")


class Listing(Generic[T]):
    """`async for thing in client.list_volumes(): ...`. Asks nothing before it is used; each use asks anew. Things that are made
    or deleted meanwhile may be missed or seen twice, as with any list in pages."""

    def __init__(self, connection: Connection, command: str, item: str, parameters: Mapping[str, str], *, pages: bool) -> None:
        self._connection, self._command, self._item = connection, command, item
        self._parameters, self._pages = dict(parameters), pages
        self._size = int(self._parameters.pop("pagesize", PAGE))

    async def __aiter__(self) -> AsyncIterator[T]:
        """Every thing, in the API's order."""
        number = 1
        while True:
            things, count = await self.page(number)
            for thing in things:
                yield thing
            if not self._pages or not things or number * self._size >= count:
                return
            number += 1

    async def page(self, number: int = 1) -> tuple[list[T], int]:
        """(the things of one page, how many match in all). `number` counts from 1."""
        which = {"page": str(number), "pagesize": str(self._size)} if self._pages else {}
        body: dict[str, Any] = await self._connection.ask(self._command, {**self._parameters, **which}, repeat=True)
        things = body.get(self._item, [])
        return cast(list[T], things), int(body.get("count", len(things)))

    async def all(self) -> list[T]:
        """Every thing, in memory."""
        return [thing async for thing in self]

    async def count(self) -> int:
        """How many match."""
        return (await self.page())[1]

    async def first(self) -> T | None:
        """The first thing; None when nothing matches."""
        things, _ = await self.page()
        return things[0] if things else None


__all__ = ["PAGE", "Listing"]
