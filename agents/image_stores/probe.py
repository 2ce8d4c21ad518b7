"""The test of an image store that is being added: TLS, clock, list, put, get, range, multipart, delete, for any plug-in.

It owns the steps and their wording. It refuses to know a store: it uses nothing but the interface, so every plug-in is
asked the same, and a failure is always a Refused that names the step, the cause and the remedy. Nothing stays behind.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

from agents.image_stores.base import ImageStore, Remote
from agents.image_stores.security import NTP, SKEW_S, skew_words
from schema.failure import Failed, Refused

log = logging.getLogger(__name__)
Steps = list[str]
STEP_S = 120.0
"""Seconds that one step may take; a store that needs longer for 5 MiB is of no use."""


async def probe(store: ImageStore, prefix: str, *, field: str = "url", settle_s: float = 0.0) -> Sequence[str]:
    """Run all steps with probe objects below `prefix`: a line for each, what it found and how long it took. Raises Refused,
    naming the step and those that passed; `field` is named where the cause names none.

    `settle_s`: seconds that the store's listings may lag behind by their nature."""
    run = _Probe(store, f"{prefix.rstrip('/')}/probe-{uuid4()}".lstrip("/"), settle_s)
    loop = asyncio.get_running_loop()
    try:
        for step, act in run.steps:
            run.step, since = step, loop.time()
            async with asyncio.timeout(STEP_S):
                found = await act()
            run.passed.append(step)
            run.lines.append(f"{step}: {found or 'passed'}, {(loop.time() - since) * 1000:.0f} ms")
    except TimeoutError:
        raise Refused(f"test step {run.step}: no answer within {STEP_S:.0f} s{run.before}", field=field,
                      remedy="check that the store is reachable and not overloaded") from None
    except Failed as error:
        failure = error.failure
        raise Refused(f"test step {run.step}: {failure.cause}{run.before}", field=failure.field or field,
                      remedy=failure.remedy) from error
    finally:
        await run.sweep()
    return run.lines


class _Probe:
    """One run: its keys, its steps."""

    def __init__(self, store: ImageStore, base: str, settle_s: float) -> None:
        self.store, self.base, self.settle_s = store, base, settle_s
        self.small, self.large = f"{base}/small", f"{base}/large"
        self.body = secrets.token_bytes(4096)
        remote: tuple[tuple[str, Callable[[], Awaitable[str | None]]], ...] = (
            ("tls", self.tls), ("clock", self.clock)) if isinstance(store, Remote) else ()
        self.steps: tuple[tuple[str, Callable[[], Awaitable[str | None]]], ...] = (
            *remote, ("list", self.list), ("put", self.put), ("get", self.get), ("range", self.range),
            ("multipart", self.multipart), ("delete", self.delete))
        self.step = ""
        self.passed: Steps = []
        self.lines: Steps = []
        self.touched = False

    @property
    def before(self) -> str:
        """The steps that passed, as the end of an error."""
        return f" (passed before it: {', '.join(self.passed)})" if self.passed else " (it is the first step)"

    async def tls(self) -> str:
        """How the connection is secured. A certificate that is not good has refused the connection before this."""
        assert isinstance(self.store, Remote)
        return self.store.secured

    async def clock(self) -> str:
        """The store's clock and this host's agree as far as signatures need."""
        assert isinstance(self.store, Remote)
        skew = await self.store.clock_ahead()
        if skew is None:
            return "the store tells no time"
        if abs(skew) > SKEW_S:
            raise Refused(f"the store's clock is {skew_words(skew)}; signed requests and links bear {SKEW_S} s", remedy=NTP)
        return f"{skew_words(skew)}" if abs(skew) >= 2 else "agrees with this host's"

    async def list(self) -> None:
        """The place is there, and empty."""
        if await self._keys([]):
            raise Refused("the listing of a fresh prefix is not empty")

    async def put(self) -> None:
        """A small object can be written and is listed."""
        self.touched = True
        await self.store.put(self.small, self.body)
        if await self._keys([self.small]) != [self.small]:
            raise Refused("the object just written is not listed", remedy="the store must list its writes at once")

    async def get(self) -> None:
        """It comes back as it was."""
        if await self.store.read(self.small, 0, len(self.body)) != self.body:
            raise Refused("the object came back changed", remedy="check proxies and caches in between")

    async def range(self) -> None:
        """So does a piece of it."""
        if await self.store.read(self.small, 1000, 500) != self.body[1000:1500]:
            raise Refused("a ranged read came back changed", remedy="the store must honour the Range header")

    async def multipart(self) -> None:
        """Parts make an object; an upload that is ended leaves nothing."""
        part_size = self.store.limits.min_part
        first = await asyncio.to_thread(lambda: self.body * (part_size // len(self.body) + 1))
        upload = await self.store.begin(self.large, part_size=part_size)
        try:
            await upload.part(2, self.body)
            await upload.part(1, first[:part_size])
            done = await upload.complete(part_size + len(self.body))
        except BaseException:
            await upload.abort()
            raise
        seen = await self.store.read(self.large, part_size - 100, 200)
        if done.size != part_size + len(self.body) or seen != first[part_size - 100:part_size] + self.body[:100]:
            raise Refused("an object made of parts came back changed")
        again = await self.store.begin(self.large, part_size=part_size)
        try:
            await again.part(1, self.body)
        finally:
            await again.abort()
        if await self.store.unfinished(self.base):
            raise Refused("an aborted upload is still there", remedy="allow the account to abort multipart uploads")

    async def delete(self) -> None:
        """Both objects go, twice."""
        for key in (self.small, self.large, self.large):
            await self.store.delete(key)
        if await self._keys([]):
            raise Refused("a deleted object is still listed", remedy="switch off object lock on the bucket")

    async def sweep(self) -> None:
        """Leave nothing, whatever happened; what cannot be removed is logged by name."""
        if not self.touched:
            return
        for key in (self.small, self.large):
            try:
                async with asyncio.timeout(STEP_S):
                    await self.store.delete(key)
            except (Failed, TimeoutError) as error:
                log.warning("the probe object %s could not be removed: %s", key, error)

    async def _keys(self, wanted: Sequence[str]) -> Sequence[str]:
        """What is listed: at once, or as soon as it is what is wanted."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.settle_s
        while True:
            found = [info.key async for info in self.store.list(self.base)]
            if found == wanted or loop.time() >= until:
                return found
            await asyncio.sleep(0.5)
