"""Throughput limits: how many bytes a second go to and from an image store, for one store and for the whole agent.

Owns a rate, shared out in small slices, a slice for each transfer in turn, so that one with many parts on their way gets no more
than another; and the store as a limited transfer sees it. Kept by the monotonic clock against one running due time, so that late
wake-ups are made up for and nothing drifts. Refuses to know what the bytes are. A part is sent when all its slices were given:
the rate is smooth to one part.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Sequence
from functools import cache
from typing import Any, cast

from agents import stall
from agents.image_stores.base import (
    Bytes,
    CopiesItself,
    ImageStore,
    Linkable,
    Measured,
    PartInfo,
    PartSource,
    ReadsInto,
    Remote,
    Resumable,
    Seen,
    StreamedUpload,
)
from agents.image_stores.details import EVERYWHERE
from schema.failure import Refused
from schema.image import StoreSpec

DETAIL = EVERYWHERE
LEAST = 1 << 20
"""Bytes a second below which no limit goes: a part would look like a store that hangs."""
SLICE = 256 << 10
BURST_S = 0.1
"""Seconds of the rate that an idle limit saves up."""


class Throttle:
    """One rate. Belongs to one event loop."""

    def __init__(self, rate: int) -> None:
        """`rate`: bytes a second."""
        self.rate = rate
        self._due = 0.0
        self._waiting: OrderedDict[object, deque[tuple[int, asyncio.Future[None]]]] = OrderedDict()
        self._giving: asyncio.Task[None] | None = None

    async def give(self, who: object, count: int) -> None:
        """Return when the transfer `who` may move `count` bytes (at most a SLICE). Cancelled, it takes nothing."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append((count, done))
        if self._giving is None or self._giving.done():
            self._giving = asyncio.create_task(self._give(), name="throttle")
        await done

    async def _give(self) -> None:
        """While anybody waits: a slice to each transfer in turn, when it is due."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            self._due = max(self._due, loop.time() - BURST_S)
            if (wait := self._due - loop.time()) > 0:
                await asyncio.sleep(wait)
            who, queue = self._waiting.popitem(last=False)
            while queue:
                count, done = queue.popleft()
                if not done.done():
                    self._due += count / self.rate
                    done.set_result(None)
                    break
            if queue:
                self._waiting[who] = queue  # behind all others


async def _pass(limits: Sequence[Throttle], who: object, count: int) -> None:
    while count > 0:
        for limit in limits:
            await limit.give(who, min(count, SLICE))
        stall.moved()  # waiting for its turn is no stall
        count -= SLICE


class _Upload:
    """An upload whose parts wait for their turn."""

    def __init__(self, upload: Any, limits: Sequence[Throttle], who: object) -> None:
        self._upload, self._limits, self._who = upload, limits, who

    def __getattr__(self, name: str) -> Any:
        return getattr(self._upload, name)

    async def part(self, number: int, data: Bytes, *, sha256: str = "") -> PartInfo | None:
        """See image_stores.base.Upload."""
        await _pass(self._limits, self._who, len(data))
        found: PartInfo | None = await self._upload.part(number, data, sha256=sha256)
        return found


class _StreamedUpload(_Upload):
    """Of an upload that takes parts as they are read."""

    async def part_from(self, number: int, source: PartSource) -> PartInfo | None:
        """See StreamedUpload. Every reading counts: where a store wants a part's digest first, the limit is kept twice over."""
        return await cast(StreamedUpload, self._upload).part_from(number, _Source(source, self._limits, self._who))


class _Source:
    """A part whose slices wait for their turn."""

    def __init__(self, source: PartSource, limits: Sequence[Throttle], who: object) -> None:
        self._source, self._limits, self._who = source, limits, who
        self.size = source.size

    @property
    def sha256(self) -> str:
        """See PartSource."""
        return self._source.sha256

    async def slices(self) -> AsyncGenerator[memoryview, None]:
        """See PartSource."""
        async with contextlib.aclosing(self._source.slices()) as slices:
            async for view in slices:
                await _pass(self._limits, self._who, len(view))
                yield view


def _upload(upload: Any, limits: Sequence[Throttle], who: object) -> _Upload:
    return (_StreamedUpload if isinstance(upload, StreamedUpload) else _Upload)(upload, limits, who)


class _Store:
    """A store as one transfer sees it: all but the bytes is the store's own."""

    def __init__(self, store: ImageStore, limits: Sequence[Throttle]) -> None:
        self._store, self._limits = store, limits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """See ImageStore."""
        await _pass(self._limits, self, length)
        return await self._store.read(key, offset, length)

    async def put(self, key: str, body: bytes) -> None:
        """See ImageStore."""
        await _pass(self._limits, self, len(body))
        await self._store.put(key, body)

    async def begin(self, key: str, *, part_size: int) -> _Upload:
        """See ImageStore."""
        return _upload(await self._store.begin(key, part_size=part_size), self._limits, self)


class _Resumes(_Store):
    """Of a store that resumes."""

    async def resume(self, key: str, *, part_size: int) -> _Upload | None:
        """See Resumable."""
        found = await cast(Resumable, self._store).resume(key, part_size=part_size)
        return _upload(found, self._limits, self) if found is not None else None


class _Fills(_Store):
    """Of a store that fills buffers."""

    async def read_into(self, key: str, offset: int, buffer: memoryview, seen: Seen | None = None) -> int:
        """See ReadsInto."""
        await _pass(self._limits, self, len(buffer))
        return await cast(ReadsInto, self._store).read_into(key, offset, buffer, seen)


class _Measures(_Store):
    """Of a store that knows its room."""

    async def free_bytes(self) -> int | None:
        """See Measured."""
        return await cast(Measured, self._store).free_bytes()


class _Links(_Store):
    """Of a store that gives links: nothing of theirs passes here."""

    async def presign(self, key: str, expires_s: int) -> str:
        """See Linkable."""
        return await cast(Linkable, self._store).presign(key, expires_s)

    async def alias(self, key: str, to: str) -> None:
        """See Linkable."""
        await cast(Linkable, self._store).alias(key, to)


class _Copies(_Store):
    """Of a store that makes copies by itself."""

    async def copy_inside(self, key: str, to: str) -> None:
        """See CopiesItself."""
        await cast(CopiesItself, self._store).copy_inside(key, to)


class _Far(_Store):
    """Of a store that is spoken to over a network."""

    @property
    def secured(self) -> str:
        """See Remote."""
        return cast(Remote, self._store).secured

    async def clock_ahead(self) -> float | None:
        """See Remote."""
        return await cast(Remote, self._store).clock_ahead()


# What a store has beside the methods of ImageStore is looked for in its class, so a limited one's class must have it too.
_MORE: tuple[tuple[type, type[_Store]], ...] = (
    (Resumable, _Resumes), (ReadsInto, _Fills), (Measured, _Measures), (Linkable, _Links), (CopiesItself, _Copies),
    (Remote, _Far))


@cache
def _limited(of: type) -> type[_Store]:
    more = tuple(limited for protocol, limited in _MORE if _has(of, protocol))
    return type(f"Limited{of.__name__}", more or (_Store,), {})


def _has(of: type, protocol: type) -> bool:
    """Whether instances of the class have every member of the protocol."""
    return all(hasattr(of, name) for name in vars(protocol) if not name.startswith("_"))


def limited(store: ImageStore, limits: Sequence[Throttle]) -> ImageStore:
    """The store for one transfer under these limits; itself when there are none."""
    return cast(ImageStore, _limited(type(store))(store, limits)) if limits else store


def rate_of(spec: StoreSpec) -> int:
    """Bytes a second that the store's details allow each agent; 0: no limit. Raises Refused."""
    text = spec.details.get(DETAIL, "").strip()
    if text in ("", "0"):
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < LEAST:
        raise Refused(f"not a number of bytes a second from {LEAST} on", field=f"details.{DETAIL}",
                      remedy="give one, or leave it out")
    return int(text)


__all__ = ["DETAIL", "LEAST", "SLICE", "Throttle", "limited", "rate_of"]
