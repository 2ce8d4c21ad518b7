"""S3Upload: one multipart upload.

It owns the parts' ETags and the order begin, parts, complete or abort. It refuses to retry by itself: every request
goes through the store's `ask`. An upload is finished only when the store shows the object in the right size, and
aborted only when the store no longer lists it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from agents import stall
from agents.image_stores.base import Bytes, ObjectInfo, PartInfo, PartSource
from agents.image_stores.trouble import Damaged, at, unconfirmed
from agents.uninterrupted import in_thread, to_the_end
from schema.failure import Failed, Unknown, WorkFailed, WorkRetryable

if TYPE_CHECKING:
    from agents.image_stores.s3 import S3ImageStore

ABORTS = 5
"""How often an upload is aborted until the store no longer lists it (parts under way can keep it alive)."""
SLOWEST = 256 << 10
"""Bytes per second of a link that is slow but not silent."""
WRONG_SUM = ("BadDigest", "XAmzContentChecksumMismatch")
UNKNOWN = ("NotImplemented", "InvalidRequest", "InvalidArgument", "400", "501")
"""What a store answers that has never heard of checksums."""
_KERNEL = 8 << 20
_CHUNK = 256 << 10


class S3Upload:
    """An object being written. Its parts may be sent in any order and at the same time."""

    def __init__(self, store: S3ImageStore, key: str, upload: str, part_size: int, *, sums: bool = False) -> None:
        """`sums`: the store checks the SHA-256 of each part of this upload."""
        self._store, self._key, self._id, self._part_size, self._sums = store, key, upload, part_size, sums
        self._parts: dict[int, tuple[dict[str, str], int]] = {}
        """Number to what the store knows each acknowledged part by, and its size."""
        self._listed: dict[int, PartInfo] = {}
        """What the store listed last."""
        self._done: ObjectInfo | None = None
        self._asked = False
        """Completion was asked for: the object may be visible."""
        self._ended = False

    async def part(self, number: int, data: Bytes, *, sha256: str = "") -> PartInfo:
        """Send one part with its digest; acknowledged when the store agrees."""
        self._fits(number, len(data))
        if self._sums:
            digest = bytes.fromhex(sha256) if sha256 else await _sha256(data)
        else:
            digest = await md5(data)
        return await self._put(number, digest, len(data), lambda: Body(data))

    async def part_from(self, number: int, source: PartSource) -> PartInfo:
        """Read it once for its digest, which a store wants first, and once for each time that it is sent."""
        self._fits(number, source.size)
        digest = await digest_of(source, sha256=self._sums)
        return await self._put(number, digest, source.size, lambda: StreamedBody(source))

    def _fits(self, number: int, size: int) -> None:
        if self._ended:
            raise WorkFailed(f"the upload of {self._key} was ended", remedy="begin again")
        if not 1 <= number <= self._store.limits.max_parts or not 0 < size <= self._part_size:
            raise WorkFailed(f"part {number} of {size} bytes does not fit an upload in parts of {self._part_size}")

    async def _put(self, number: int, digest: bytes, size: int, made: Callable[[], AnyBody]) -> PartInfo:
        """Send a part; `made` makes its body anew for each try."""
        says = {"ChecksumSHA256" if self._sums else "ContentMD5": base64.b64encode(digest).decode()}

        async def put() -> dict[str, str]:
            answer = await send(made(), self._store.silence_s, lambda body: self._store.client.upload_part(
                Bucket=self._store.bucket, Key=self._key, UploadId=self._id, PartNumber=number, Body=body, **says))
            if not self._sums:
                return {"ETag": check_etag(answer, digest)}
            if answer.get("ChecksumSHA256", says["ChecksumSHA256"]) != says["ChecksumSHA256"]:
                raise Damaged("the store's SHA-256 is not that of what was sent")
            return {"ETag": str(answer["ETag"]), **says}

        known: dict[str, str] = await self._store.ask(f"write part {number} of {self._key}", put)
        self._parts[number] = (known, size)
        return PartInfo(size=size, etag=_bare(known["ETag"]))

    async def parts(self) -> Mapping[int, PartInfo]:
        """From the store's list of parts, in pages."""
        self._listed = await self._list() or {}
        return dict(self._listed)

    async def take_up(self) -> bool:
        """Look at an upload that an earlier process began. False when it is gone, or has parts of another size."""
        found = await self._list()
        if found is None:
            return False
        self._listed, last = found, max(found, default=0)
        return all(info.size == self._part_size or (info.size < self._part_size and number == last)
                   for number, info in found.items())

    async def keep(self, number: int, *, sha256: str) -> None:
        """As it is listed; a store that checks SHA-256 wants it again at the end."""
        info = self._listed.get(number)
        if info is None:
            raise WorkFailed(f"part {number} of {self._key} is not there", remedy="write it again")
        says = {"ChecksumSHA256": base64.b64encode(bytes.fromhex(sha256)).decode()} if self._sums else {}
        self._parts[number] = ({"ETag": f'"{info.etag}"', **says}, info.size)

    async def _list(self) -> dict[int, PartInfo] | None:
        """What the store lists of this upload; None when it is gone. A part listed with two contents (SeaweedFS keeps what was
        sent before, in no order) is left out: nobody knows which one counts."""
        found: dict[int, PartInfo] = {}
        doubtful: set[int] = set()
        marker = 0
        for _ in range(self._store.limits.max_parts + 1):  # a page has one part at least
            page = await self._store.ask(f"list the parts of {self._key}", functools.partial(
                self._store.client.list_parts, Bucket=self._store.bucket, Key=self._key, UploadId=self._id,
                MaxParts=self._store.page_size, PartNumberMarker=marker), absent=("NoSuchUpload", "NoSuchKey"))
            if page is None:
                return None
            for entry in page.get("Parts", []):
                number, info = int(entry["PartNumber"]), PartInfo(size=int(entry["Size"]), etag=_bare(str(entry["ETag"])))
                if found.setdefault(number, info) != info:
                    doubtful.add(number)
            following = int(page.get("NextPartNumberMarker") or 0) if page.get("IsTruncated") else 0
            if not following:
                return {number: info for number, info in found.items() if number not in doubtful}
            if following <= marker:
                break
            marker = following
        raise WorkFailed(f"list the parts of {self._key}: the store's pages never end", field="url",
                         remedy="look into the store's log")

    async def complete(self, size: int) -> ObjectInfo:
        """Join the parts, then look at the object: the store's word is not enough."""
        if self._done is not None:
            return self._done
        if self._ended:
            raise WorkFailed(f"the upload of {self._key} was ended", remedy="begin again")
        self._check(size)
        action = at(f"complete {self._key}", self._store.name)
        self._asked = True
        try:
            if self._parts:
                listed = [{"PartNumber": number, **known} for number, (known, _) in sorted(self._parts.items())]
                # NoSuchUpload may be the answer to a repeated request whose first answer was lost: the look decides.
                await self._store.ask(f"complete {self._key}", lambda: self._store.client.complete_multipart_upload(
                    Bucket=self._store.bucket, Key=self._key, UploadId=self._id, MultipartUpload={"Parts": listed}),
                    changes=True, absent=("NoSuchUpload",))
            else:  # S3 has no multipart upload without parts
                await self._store.put(self._key, b"")
                await self._store.abort_upload(self._key, self._id)
        except Unknown:
            info = await self._look(action)
            if info is None or info.size != size:
                raise
        info = await self._look(action)
        if info is None or info.size != size:
            found = "it is absent" if info is None else f"it has {info.size} bytes"
            raise WorkFailed(f"{action}: {found} and should have {size}", remedy="begin again")
        self._done = info
        return info

    async def _look(self, action: str) -> ObjectInfo | None:
        try:
            return await self._store.stat(self._key)
        except Failed as error:  # definite about the look, not about the object
            raise unconfirmed(action, error) from None

    def _check(self, size: int) -> None:
        count = len(self._parts)
        if sorted(self._parts) != list(range(1, count + 1)):
            raise WorkFailed(f"parts of {self._key} are missing: {count} were written, the last is {max(self._parts)}",
                             remedy="write all parts, then complete")
        if any(self._parts[number][1] != self._part_size for number in range(1, count)):
            raise WorkFailed(f"a part of {self._key} other than the last is short")
        total = sum(length for _, length in self._parts.values())
        if total != size:
            raise WorkFailed(f"the parts of {self._key} have {total} bytes, not {size}")

    async def abort(self) -> None:
        """End the upload until the store no longer lists it; after a failed completion also remove the object."""
        if self._done is not None:
            return
        self._ended = True
        self._parts.clear()
        for attempt in range(ABORTS):
            await self._store.abort_upload(self._key, self._id)
            if (self._key, self._id) not in await self._store.uploads(self._key):
                break
            await asyncio.sleep(0.2 * 2.0**attempt)
        else:
            raise WorkRetryable(f"end the upload of {self._key}: the store still lists it after {ABORTS} aborts",
                                field="url", remedy="delete the object again later")
        if self._asked:
            await self._store.delete(self._key)


def _bare(etag: str) -> str:
    """Without the quotes, which some answers have and some have not."""
    return etag.strip('"').lower()


class Body:
    """Bytes as aiohttp sends them best: slices of a view, nothing copied, nothing read in another thread.

    botocore takes it for a file (read, seek, len), aiohttp for an asynchronous iterable.
    """

    def __init__(self, data: Bytes) -> None:
        self._view = memoryview(data).cast("B")
        self._at = 0
        self.moved: Callable[[bool], None] = lambda last: None
        """Called when a slice is asked for; with True when all were taken."""

    def __len__(self) -> int:
        return len(self._view)

    def read(self, size: int = -1) -> bytes:
        """As a file."""
        end = len(self._view) if size < 0 else self._at + size
        start, self._at = self._at, min(end, len(self._view))
        return bytes(self._view[start : self._at])

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As a file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._view)}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """As a file."""
        return self._at

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for start in range(0, len(self._view), _CHUNK):
            self.moved(False)
            yield self._view[start : start + _CHUNK]
        self.moved(True)


class StreamedBody:
    """The same for a part that is read while it is sent."""

    def __init__(self, source: PartSource) -> None:
        self._source, self._at = source, 0
        self._slices = source.slices()
        self._view, self._sent = memoryview(b""), 0
        self._using, self._ended = asyncio.Lock(), False
        self.moved: Callable[[bool], None] = lambda last: None
        """As Body's; also called with True while the disk is read: a slow disk is not a silent store."""
        self.failure: Exception | None = None
        """Why the disk could not be read: aiohttp would tell of a broken connection."""

    def __len__(self) -> int:
        return self._source.size

    def read(self, size: int = -1) -> bytes:
        """Nobody reads it so: the payload is not signed."""
        raise WorkFailed("a streamed part is read as it is sent")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Only to learn the length."""
        self._at = offset + (len(self) if whence == os.SEEK_END else self._at if whence == os.SEEK_CUR else 0)
        return self._at

    def tell(self) -> int:
        """As a file."""
        return self._at

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes, copied: the slice's room is used again before the kernel has them."""
        async with self._using:
            if self._ended:
                raise StopAsyncIteration
            if self._sent == len(self._view):
                self.moved(True)
                try:
                    self._view, self._sent = await anext(self._slices), 0
                except StopAsyncIteration:
                    raise
                except Exception as error:
                    self.failure = error
                    raise
            self.moved(False)
            start, self._sent = self._sent, min(self._sent + _CHUNK, len(self._view))
            return bytes(self._view[start : self._sent])

    async def aclose(self) -> None:
        """Let go of the source: aiohttp leaves what it did not send to the end as it is."""
        self._ended = True
        async with self._using:
            await self._slices.aclose()


AnyBody = Body | StreamedBody


async def digest_of(source: PartSource, *, sha256: bool) -> bytes:
    """What the store compares: one whole reading for its SHA-256, or for its MD5."""
    if sha256 and source.sha256:
        return bytes.fromhex(source.sha256)
    other = hashlib.md5(usedforsecurity=False)
    async with contextlib.aclosing(source.slices()) as slices:
        async for view in slices:
            if not sha256:
                await in_thread(other.update, view)
    return bytes.fromhex(source.sha256) if sha256 else other.digest()


async def send(body: AnyBody, silence_s: float, call: Callable[[AnyBody], Awaitable[Any]]) -> Any:
    """Make a request with this body; TimeoutError when the other side takes no more of it for `silence_s` seconds.

    aiohttp bounds the wait for an answer but not the wait for a reader; a slow reader is fine, a stopped one is not.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:

        started = -1.0  # its clock, last; below 0: it stands

        def onward(last: bool) -> None:
            nonlocal started
            now = loop.time()
            if last:
                started = -1.0
                limit.reschedule(None)
            elif started < 0 or now - started >= stall.EVERY_S:
                started = now
                limit.reschedule(now + silence_s + stall.EVERY_S)
            stall.moved()

        body.moved = onward
        try:
            return await call(body)
        except Exception:
            if isinstance(body, StreamedBody) and body.failure is not None:
                raise body.failure from None
            raise
        finally:
            if isinstance(body, StreamedBody):
                await to_the_end(body.aclose())


def answer_s(silence_s: float, length: int) -> float:
    """Seconds to wait for an answer after the last byte of a body was given to the kernel, which may hold megabytes of
    it: silence, plus what those take at SLOWEST."""
    return silence_s + min(length, _KERNEL) / SLOWEST


async def refuses_wrong_sum(store: S3ImageStore, key: str, upload: str) -> bool:
    """Send one byte with the SHA-256 of another to this upload: whether the store refuses it for that."""
    wrong = base64.b64encode(hashlib.sha256(b"another").digest()).decode()

    async def put() -> bool:
        await send(Body(b"x"), store.silence_s, lambda body: store.client.upload_part(
            Bucket=store.bucket, Key=key, UploadId=upload, PartNumber=1, Body=body, ChecksumSHA256=wrong))
        return False

    try:
        found: bool = await store.ask("see whether checksums are checked", put, plain=(*WRONG_SUM, *UNKNOWN))
        return found
    except ClientError as error:
        return error.response["Error"]["Code"] in WRONG_SUM


async def _sha256(data: Bytes) -> bytes:
    return await asyncio.to_thread(lambda: hashlib.sha256(data).digest())


async def md5(data: Bytes) -> bytes:
    """The MD5 that S3 compares, computed in a thread."""
    return await asyncio.to_thread(lambda: hashlib.md5(data, usedforsecurity=False).digest())


def check_etag(answer: Mapping[str, Any], digest: bytes) -> str:
    """The answer's ETag. Raises Damaged when it is an MD5 of other bytes (encrypting stores answer other things)."""
    etag = str(answer["ETag"])
    plain = answer.get("ServerSideEncryption") in (None, "AES256") and not answer.get("SSECustomerAlgorithm")
    value = etag.strip('"').lower()
    if plain and len(value) == 32 and value != digest.hex():
        raise Damaged("the ETag is not the MD5 of what was sent")
    return etag
