"""Downloads: a URL into an image store, inspected and hashed while it streams, nothing of it kept anywhere else.

Owns caps (bytes, stall), redirects by hand through the guard, the checksum, that a qcow2 is whole before it counts as there,
that a failure leaves nothing, and that after a kill only what is missing is asked for, while all is looked at. Refuses to
decompress, to send credentials, and to trust a Content-Length.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from agents import manifest as manifests
from agents import stall
from agents.image_stores.base import ImageStore, Resumable, Upload
from agents.inspection import Inspection
from agents.motion import resuming
from agents.motion.base import Progress
from agents.motion.direct import RANGE, leave_nothing, part_size
from agents.qcow2_whole import prove_whole
from agents.source_identity import Source, described
from agents.transfer_record import TransferRecord
from agents.url_guard import Target, UrlGuard
from schema.agent import FetchImage
from schema.checksum import parse_checksum
from schema.failure import BadParameter, Failed, WorkRetryable
from schema.image import ImageFormat, ImageRef, Manifest

log = logging.getLogger(__name__)
REDIRECTS = 3
CONNECT_S = 15.0
IN_FLIGHT = 4
"""Parts being uploaded while the next is read."""
SLICE = 1 << 20


class _Pinned(AbstractResolver):
    """Answers with the addresses that the guard checked, and nothing else."""

    def __init__(self, target: Target) -> None:
        self.target = target

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        """The checked addresses."""
        if host.rstrip(".") != self.target.host:
            raise OSError(f"{host} was not checked")
        return [ResolveResult(hostname=host, host=address, port=port, proto=0, flags=socket.AI_NUMERICHOST,
                              family=socket.AF_INET6 if ":" in address else socket.AF_INET)
                for address in self.target.addresses]

    async def close(self) -> None:
        """Nothing is open."""


@contextlib.asynccontextmanager
async def opened(url: str, guard: UrlGuard, asking: Mapping[str, str] | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
    """The final answer of a URL, each hop checked and pinned. Raises BadParameter or WorkRetryable.

    `asking`: headers that ask for a range; what came is then for the caller to see, unless it is an error."""
    base = ""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=stall.seconds())
    for _ in range(REDIRECTS + 1):
        target = await guard.check(url, base=base)
        connector = aiohttp.TCPConnector(resolver=_Pinned(target), use_dns_cache=False, force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False, auto_decompress=False,
                                         cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=SLICE) as session:
            headers = {"Accept-Encoding": "identity", "User-Agent": "storebus", **(asking or {})}
            async with session.get(target.url, allow_redirects=False, headers=headers) as answer:
                if answer.status in (301, 302, 303, 307, 308):
                    base, url = target.url, answer.headers.get("Location", "")
                    if not url:
                        raise BadParameter("the server redirects and does not say where", field="url")
                    continue
                _accept(answer, ranged=asking is not None)
                yield answer
                return
    raise BadParameter(f"the URL redirects more than {REDIRECTS} times", field="url")


def _accept(answer: aiohttp.ClientResponse, *, ranged: bool) -> None:
    if answer.status >= 500 or answer.status == 429:
        raise WorkRetryable(f"the server answers {answer.status}", field="url", remedy="it is tried again")
    if answer.status != 200 and not (ranged and answer.status in (206, 412, 416)):
        raise BadParameter(f"the server answers {answer.status} {answer.reason or ''}".strip(), field="url",
                           remedy="check the address")
    if answer.headers.get("Content-Encoding", "identity") not in ("identity", ""):
        raise BadParameter("the server sends the image compressed", field="url", remedy="offer it uncompressed")


class _Changed(Exception):
    """The source is not what it was when the download began."""


@dataclass
class Download:
    """One download into one store."""

    order: FetchImage
    store: ImageStore
    guard: UrlGuard
    progress: Progress
    record: TransferRecord | None = None
    digests: dict[int, str] = field(default_factory=dict)
    received: int = 0
    acknowledged: int = 0
    total: int = 0

    async def run(self) -> ImageRef:
        """Fetch, inspect, store, verify; the image. Raises with nothing left behind."""
        checksum = parse_checksum(self.order.checksum)
        self.progress("connect", 0, 0)
        try:
            source = await self._begun_before()
            if source is not None:
                try:
                    return await self._go_on(source, checksum)
                except _Changed:
                    log.info("the source of %s changed: its download begins again", self.order.key,
                             extra={"action": "source_changed"})
                    self.digests, self.received, self.acknowledged = {}, 0, 0
            async with opened(self.order.url, self.guard) as answer:
                return await self._store(answer, checksum)
        except aiohttp.ConnectionTimeoutError:
            raise WorkRetryable(f"the server does not take a connection within {CONNECT_S:.0f} s", field="url",
                                remedy="it is tried again") from None
        except TimeoutError:
            raise stall.stalled("download", self.acknowledged, self.total, stall.seconds()) from None
        except aiohttp.ClientPayloadError:
            raise WorkRetryable(f"the connection broke after {self.received} bytes: truncated", field="url",
                                remedy="it is tried again") from None
        except aiohttp.ClientSSLError as error:
            raise BadParameter(f"no trusted connection to {error.host} can be made", field="url",
                               remedy="use an address whose certificate is valid") from None
        except aiohttp.ClientResponseError:  # its text holds the whole URL, which after a redirect may be a signed one
            raise WorkRetryable("the server answers in a way that is not HTTP", field="url", remedy="it is tried again") from None
        except (aiohttp.ClientError, OSError) as error:
            raise WorkRetryable(f"the server cannot be reached: {error}", field="url", remedy="it is tried again") from None

    async def _store(self, answer: aiohttp.ClientResponse, checksum: tuple[str, str] | None) -> ImageRef:
        order = self.order
        self.total = answer.content_length or 0
        if self.total > order.max_bytes:
            raise BadParameter(f"the image has {self.total} bytes; at most {order.max_bytes} are taken", field="url")
        size = part_size(self.total or order.max_bytes, self.store.limits)
        upload = await self._begun(size)
        try:
            if self.record is not None:
                source = Source.of(answer.headers, self._what(), total=self.total, part=size)
                await self.record.begin(source.text() if source is not None else "", {})
            whole, asked, virtual = await self._stream(answer, upload, size, checksum)
            if self.total and self.received != self.total:
                raise WorkRetryable(f"{self.received} of {self.total} bytes came: truncated", field="url")
            _compare(checksum, asked)
            self.progress("verify", self.acknowledged, self.received)
            await upload.complete(self.received)
            return await self._named(size, whole, virtual)
        except BaseException:
            await leave_nothing(self.store, upload, order.key)
            raise

    async def _named(self, size: int, whole: str, virtual: int) -> ImageRef:
        """The object's last proof and its manifest: without that it is nothing yet."""
        order = self.order
        if order.format is ImageFormat.QCOW2:
            await prove_whole(functools.partial(self.store.read, order.key), self.received)
        parts = [self.digests[number] for number in range(len(self.digests))]
        root = manifests.root_of(parts)
        await manifests.write_manifest(self.store, Manifest(
            installation=order.store.prefix, kind=order.kind, thing_id=order.thing_id, job_id=order.job_id,
            work=order.work_name, key=order.key, format=order.format, virtual_size=virtual, physical_size=self.received,
            part_size=size, parts=parts, root=root, sha256=whole, created=datetime.now(UTC).isoformat()))
        return ImageRef(store_id=order.store.id, key=order.key, format=order.format, virtual_size=virtual,
                        physical_size=self.received, root=root, sha256=whole)

    def _what(self) -> str:
        return described(self.order.url, str(self.order.store.id), self.order.key)

    async def _begun_before(self) -> Source | None:
        """The source of this attempt's earlier run, when it was killed and can be gone on with."""
        if self.record is None or not isinstance(self.store, Resumable):
            return None
        source = Source.parse(await self.record.about(), self._what())
        return source if source is not None and await self.record.read(source.text()) else None

    async def _go_on(self, source: Source, checksum: tuple[str, str] | None) -> ImageRef:
        """Fetch the parts that are missing. Then read the whole object once from the store: the inspection, and the sums that no
        process has the state of any more, see every byte in order. Raises _Changed with nothing left."""
        size, self.total = source.part, source.total
        if source.total > self.order.max_bytes:
            raise _Changed  # the limit did: what it means is said where the answer is looked at
        upload: Upload | None = None
        try:
            upload, kept = await resuming.begin(self.store, self.order.key, part_size=size, size=source.total,
                                                about=source.text(), record=self.record)
            self.digests = {number - 1: digest for number, digest in kept.items()}
            self.acknowledged = self.received = sum(self._length(number, source) for number in self.digests)
            if upload is not None:
                for first, end in missing(set(self.digests), -(-source.total // size)):
                    await self._run_of_parts(upload, source, first, end)
                self.progress("verify", self.acknowledged, source.total)
                await upload.complete(source.total)
            whole, asked, virtual = await self._read_back(source, checksum)
            _compare(checksum, asked)
            return await self._named(size, whole, virtual)
        except BaseException:
            await leave_nothing(self.store, upload, self.order.key)
            raise

    def _length(self, number: int, source: Source) -> int:
        return min(source.part, source.total - number * source.part)

    async def _run_of_parts(self, upload: Upload, source: Source, first: int, end: int) -> None:
        """Parts `first` (from 0) to before `end`, by one request. Raises _Changed."""
        start, last = first * source.part, min(end * source.part, source.total) - 1
        slots, part, number = asyncio.Semaphore(IN_FLIGHT), bytearray(), first
        self.progress("download", self.acknowledged, self.total)
        try:
            async with opened(self.order.url, self.guard, source.asking(start, last)) as answer, asyncio.TaskGroup() as uploads:
                if not source.gives(answer.status, answer.headers, start, last):
                    raise _Changed
                async for data in answer.content.iter_chunked(SLICE):
                    self.received += len(data)
                    stall.moved()
                    part += data
                    while number < end and len(part) >= self._length(number, source):
                        await slots.acquire()
                        cut = self._length(number, source)
                        full, part = part[:cut], part[cut:]
                        uploads.create_task(self._part(upload, number, full, slots))
                        number += 1
                    if number == end and part:
                        break
                if number != end or part:
                    raise WorkRetryable("the server sent another range than it said", field="url", remedy="it is tried again")
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def _read_back(self, source: Source, checksum: tuple[str, str] | None) -> tuple[str, str, int]:
        inspection, look, sums = self._looking(checksum)
        for number in range(len(self.digests)):
            at, digest = number * source.part, hashlib.sha256()
            end = at + self._length(number, source)
            while at < end:
                data = await self.store.read(self.order.key, at, min(RANGE, end - at))
                if not data:
                    raise WorkRetryable(f"the object {self.order.key} ends at byte {at}", remedy="it is tried again")
                await asyncio.to_thread(look, data)
                await asyncio.to_thread(digest.update, data)
                at += len(data)
            if digest.hexdigest() != self.digests[number]:
                raise WorkRetryable(f"part {number + 1} of the object {self.order.key} is not what was sent",
                                    remedy="it is tried again")
        virtual = await asyncio.to_thread(inspection.finish)
        return *sums(), virtual

    async def _begun(self, size: int) -> Upload:
        """The upload. Cancelled meanwhile, it is ended: nobody else would know of it."""
        begin = asyncio.ensure_future(self.store.begin(self.order.key, part_size=size))
        try:
            return await asyncio.shield(begin)
        except asyncio.CancelledError:
            with contextlib.suppress(Failed):
                await leave_nothing(self.store, await begin, self.order.key)
            raise
        except Failed:  # its answer may be what got lost
            await leave_nothing(self.store, None, self.order.key)
            raise

    async def _stream(self, answer: aiohttp.ClientResponse, upload: Upload, size: int,
                      checksum: tuple[str, str] | None) -> tuple[str, str, int]:
        inspection, look, sums = self._looking(checksum)
        self.progress("download", 0, self.total)  # from here on bytes should move
        try:
            virtual = await self._pump(answer, upload, size, look, inspection)
        except BaseExceptionGroup as group:
            raise _first(group) from None
        return *sums(), virtual

    def _looking(self, checksum: tuple[str, str] | None) -> tuple[Inspection, Callable[[bytes], None],
                                                                  Callable[[], tuple[str, str]]]:
        """The inspection; what shows it and the sums the next bytes; the sums at the end (SHA-256, the one asked for)."""
        inspection = Inspection(self.order.format, max_virtual_size=self.order.max_virtual_size)
        whole = hashlib.sha256()
        asked = hashlib.new(checksum[0], usedforsecurity=False) if checksum else None

        def look(data: bytes) -> None:
            inspection.feed(data)
            whole.update(data)
            if asked is not None:
                asked.update(data)

        return inspection, look, lambda: (whole.hexdigest(), asked.hexdigest() if asked else "")

    async def _pump(self, answer: aiohttp.ClientResponse, upload: Upload, size: int, look: Callable[[bytes], None],
                    inspection: Inspection) -> int:
        """Read, look, cut into parts, upload: the next part is read while earlier ones are on their way."""
        slots = asyncio.Semaphore(IN_FLIGHT)
        part, number = bytearray(), 0
        async with asyncio.TaskGroup() as uploads:
            async for data in answer.content.iter_chunked(SLICE):
                self.received += len(data)
                stall.moved()
                if self.received > self.order.max_bytes:
                    raise BadParameter(f"the image has more than {self.order.max_bytes} bytes", field="url")
                await asyncio.to_thread(look, data)
                part += data
                while len(part) >= size:
                    await slots.acquire()
                    full, part = part[:size], part[size:]
                    uploads.create_task(self._part(upload, number, full, slots))
                    number += 1
            virtual = await asyncio.to_thread(inspection.finish)
            if part:
                await slots.acquire()
                uploads.create_task(self._part(upload, number, part, slots))
        return virtual

    async def _part(self, upload: Upload, number: int, data: bytearray, slots: asyncio.Semaphore) -> None:
        try:
            self.digests[number] = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
            acknowledged = await upload.part(number + 1, data, sha256=self.digests[number])
            if self.record is not None and acknowledged is not None:
                await self.record.add(number + 1, self.digests[number], acknowledged)
        finally:
            slots.release()
        self.acknowledged += len(data)
        self.progress("download", self.acknowledged, self.total)


async def fetch(order: FetchImage, store: ImageStore, guard: UrlGuard, progress: Progress,
                record: TransferRecord | None = None) -> ImageRef:
    """Download an order's URL into the store. With `record`, what a run that was killed had come to is gone on with."""
    return await Download(order, store, guard, progress, record).run()


def missing(there: Collection[int], count: int) -> list[tuple[int, int]]:
    """Runs (first, the one behind the last) of the numbers below `count` that are not `there`."""
    runs: list[tuple[int, int]] = []
    for number in range(count):
        if number not in there:
            if runs and runs[-1][1] == number:
                runs[-1] = (runs[-1][0], number + 1)
            else:
                runs.append((number, number + 1))
    return runs


def _compare(checksum: tuple[str, str] | None, asked: str) -> None:
    if checksum is not None and asked != checksum[1]:
        raise BadParameter(f"the image's {checksum[0]} is {asked}, not {checksum[1]}", field="checksum",
                           remedy="check the address and the checksum")


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """What a task group wraps: the first of its errors."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
