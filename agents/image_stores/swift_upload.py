"""SwiftUpload: one static large object being written: segments, then a manifest that names each with its MD5 and size.

It owns the segments' names and digests and the order begin, parts, manifest or abort. It refuses to retry by itself: every
request goes through the store's client. Segments lie under a prefix of this upload's own, so those of two writers never mix;
the object says in its metadata which upload made it, so what no object speaks for is unfinished.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from swiftclient.client import put_object
from swiftclient.exceptions import ClientException

from agents.image_stores.base import Bytes, ObjectInfo, PartInfo, PartSource
from agents.image_stores.several import each
from agents.image_stores.swift_client import Grant, Line, StreamedBody, threaded
from agents.image_stores.trouble import Damaged, at, unconfirmed
from schema.failure import Failed, Unknown, WorkFailed

if TYPE_CHECKING:
    from agents.image_stores.swift import SwiftImageStore

log = logging.getLogger(__name__)
FOLDER = ".segments/"
"""What names of segments start with; the object's key, the upload and the number follow."""
MADE_BY = "x-object-meta-storebus-upload"
"""Metadata of an object: the upload whose segments it is made of."""
PART_SIZE = "x-object-meta-storebus-part-size"
"""Metadata of that mark: bytes of each part but the last."""
BEGUN = "begun"
"""A mark beside the segments from the begin to the end of an upload: an upload without parts is unfinished too."""


class SwiftUpload:
    """An object being written. Its parts may be sent in any order and at the same time."""

    def __init__(self, store: SwiftImageStore, key: str, upload: str, part_size: int) -> None:
        self._store, self._key, self._id, self._part_size = store, key, upload, part_size
        self._base = segments_of(key, upload)
        self._parts: dict[int, tuple[str, int]] = {}
        """Number to MD5 and size of each acknowledged part."""
        self._tried: set[str] = {BEGUN}
        """Last components of all names that may have been written."""
        self._listed: dict[int, PartInfo] = {}
        """What the store listed last."""
        self._done: ObjectInfo | None = None
        self._asked = False
        """Completion was asked for: the object may be visible."""
        self._ended = False

    async def begin(self) -> None:
        """Leave the mark."""
        await self._store.client.ask(f"begin {self._key}", lambda line, grant: put_bytes(
            line, grant, self._store.segments, self._base + BEGUN, b"", {PART_SIZE: str(self._part_size)}))

    async def parts(self) -> Mapping[int, PartInfo]:
        """From the listing of this upload's segments; what it does not show yet is written again."""
        self._listed = {}
        async for name, size, etag in self._store.names(self._store.segments, self._base):
            last = name.removeprefix(self._base)
            self._tried.add(last)
            if last.isdigit():
                self._listed[int(last)] = PartInfo(size=size, etag=etag)
        return dict(self._listed)

    async def keep(self, number: int, *, sha256: str) -> None:
        """As it is listed; the store looks at it when it is given the manifest."""
        info = self._listed.get(number)
        if info is None:
            raise WorkFailed(f"part {number} of {self._key} is not there", remedy="write it again")
        self._parts[number] = (info.etag, info.size)

    async def part(self, number: int, data: Bytes, *, sha256: str = "") -> PartInfo:
        """Send one segment with its MD5, which the store checks; acknowledged when the ETag it answers agrees.

        Swift knows no other sum: `sha256` is not used."""
        name = self._fits(number, len(data))
        return self._kept(number, len(data), await self._store.client.ask(
            f"write part {number} of {self._key}", lambda line, grant: put_bytes(
                line, grant, self._store.segments, self._base + name, data)))

    async def part_from(self, number: int, source: PartSource) -> PartInfo:
        """The same while it is read: its MD5 is known at the end only, and then compared with the ETag."""
        name = self._fits(number, source.size)
        where = self._store.segments, self._base + name
        async with threaded(source) as reading:
            def put(line: Line, grant: Grant) -> str:
                line.check()
                with closing(reading()) as slices:
                    body = StreamedBody(line, slices)
                    answered = put_object(grant.url, grant.token, *where, body, content_length=source.size,
                                          content_type="application/octet-stream", http_conn=line.http)
                    return _agreed(answered, body.end())

            return self._kept(number, source.size, await self._store.client.ask(f"write part {number} of {self._key}", put))

    def _fits(self, number: int, size: int) -> str:
        """The segment's name."""
        if self._ended:
            raise WorkFailed(f"the upload of {self._key} was ended", remedy="begin again")
        if not 1 <= number <= self._store.limits.max_parts or not 0 < size <= self._part_size:
            raise WorkFailed(f"part {number} of {size} bytes does not fit an upload in parts of {self._part_size}")
        name = f"{number:06}"
        self._tried.add(name)
        return name

    def _kept(self, number: int, size: int, etag: str) -> PartInfo:
        self._parts[number] = (etag, size)
        return PartInfo(size=size, etag=etag)

    async def complete(self, size: int) -> ObjectInfo:
        """Write the manifest, then look at the object: the store's word is not enough."""
        if self._done is not None:
            return self._done
        if self._ended:
            raise WorkFailed(f"the upload of {self._key} was ended", remedy="begin again")
        self._check(size)
        action = f"complete {self._key}"
        if not await self._store.has_segment(self._base + BEGUN):
            raise WorkFailed(f"{at(action, self._store.client.name)}: the upload was ended by another writer",
                             remedy="begin again")
        entries = [self._entry(f"{number:06}", *self._parts[number]) for number in sorted(self._parts)]
        named, most = list(entries), self._store.most_entries
        if len(entries) > most:
            step = max(most // 4, -(-len(entries) // most))  # short lists: the store looks at each entry while we wait
            lists = [entries[at : at + step] for at in range(0, len(entries), step)]
            entries = [await self._list(f"list-{number:04}", entries) for number, entries in enumerate(lists, 1)]
            named += entries
        self._asked = True
        alone = False

        async def appear() -> None:
            try:
                await self._manifest(action, self._store.container, self._key, entries, {MADE_BY: self._id})
            except Unknown:
                if not await self._visible(size):
                    raise

        async def look() -> None:
            nonlocal alone
            alone = await self._alone()

        async def prove() -> None:
            if not await self._visible(size):
                raise WorkFailed(f"{at(action, self._store.client.name)}: the object is absent, or another writer's, or not of "
                                 f"{size} bytes", remedy="begin again")

        async def clear() -> None:
            used = {entry["path"].rpartition("/")[2] for entry in named}
            await self._tidy(partial(self._store.remove_segments, [self._base + name for name in sorted(self._tried - used)]))

        await _both(appear, look)  # the servers look at each segment meanwhile
        await _both(prove, clear)
        self._done = ObjectInfo(key=self._key, size=size)
        if not alone:
            await self._tidy(partial(self._store.sweep, segments_of(self._key), keep=self._base))
        return self._done

    async def _alone(self) -> bool:
        """Whether the segments of this upload are all that is listed for the key."""
        try:
            return all([name.startswith(self._base) async for name, _, _ in
                        self._store.names(self._store.segments, segments_of(self._key))])
        except Failed:
            return False

    async def _tidy(self, clean: Callable[[], Awaitable[None]]) -> None:
        """The object is whole: what cannot be removed now is listed as unfinished until it goes."""
        try:
            await clean()
        except Failed as error:
            log.warning("what was left beside %s could not be removed: %s", self._key, error)

    def _entry(self, name: str, etag: str, size: int) -> dict[str, Any]:
        return {"path": f"/{self._store.segments}/{self._base}{name}", "etag": etag, "size_bytes": size}

    async def _list(self, name: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """A manifest of some of the segments: an entry of the object's own when there are too many for one."""
        self._tried.add(name)
        etag = await self._manifest(f"list parts of {self._key}", self._store.segments, self._base + name, entries, {})
        return self._entry(name, etag, sum(entry["size_bytes"] for entry in entries))

    async def _manifest(self, action: str, container: str, name: str, entries: list[dict[str, Any]],
                        headers: dict[str, str]) -> str:
        """Its ETag. Without entries: an empty object. The store compares each segment's ETag and size."""
        etag = hashlib.md5("".join(entry["etag"] for entry in entries).encode(), usedforsecurity=False).hexdigest()
        body = json.dumps(entries).encode() if entries else b""

        def put(line: Line, grant: Grant) -> str:
            answered = put_object(grant.url, grant.token, container, name, body, etag=etag, http_conn=line.http,
                                  content_type="application/octet-stream", headers=headers,
                                  query_string="multipart-manifest=put" if entries else None)
            if answered.strip('"') != etag:
                raise Damaged("the ETag is not that of the segments")
            return etag

        try:
            await self._store.client.ask(action, put, changes=container == self._store.container, plain=(400,))
        except ClientException:
            raise WorkFailed(f"{at(action, self._store.client.name)}: the store does not find all segments as they were sent",
                             field="details.segmentcontainer",
                             remedy="begin again; see that nothing else deletes in the container of segments") from None
        return etag

    async def _visible(self, size: int) -> bool:
        try:
            seen = await self._store.look(self._key)
        except Failed as error:  # definite about the look, not about the object
            raise unconfirmed(at(f"complete {self._key}", self._store.client.name), error) from None
        return seen is not None and seen.get(MADE_BY) == self._id and int(seen["content-length"]) == size

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
        """Remove the object if it is this upload's, then every segment that may have been written.

        Names are deleted though no listing shows them: a request that is still under way on the store is older than its
        deletion, and the younger wins."""
        if self._done is not None:
            return
        self._ended = True
        self._parts.clear()
        if self._asked:
            seen = await self._store.look(self._key)
            if seen is not None and seen.get(MADE_BY) == self._id:
                await self._store.remove(self._key)
        await self._store.remove_segments(self._base + name for name in sorted(self._tried))
        await self._store.sweep(self._base)


async def _both(one: Callable[[], Awaitable[None]], other: Callable[[], Awaitable[None]]) -> None:
    await each((one, other), lambda act: act(), width=2)


def segments_of(key: str, upload: str = "") -> str:
    """What the names of an object's segments start with; of one upload's, where it is given."""
    return f"{FOLDER}{key}/{upload}/" if upload else f"{FOLDER}{key}/"


def put_bytes(line: Line, grant: Grant, container: str, name: str, data: Bytes, headers: dict[str, str] | None = None) -> str:
    """PUT an object with its MD5 in this thread; its ETag. Raises Damaged when it is not the MD5 of what was sent."""
    etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
    line.check()
    answered = put_object(grant.url, grant.token, container, name, line.body(data) if len(data) else b"",
                          content_length=len(data), etag=etag, content_type="application/octet-stream", headers=headers,
                          http_conn=line.http)
    return _agreed(answered, etag)


def _agreed(answered: str, etag: str) -> str:
    """The ETag. Raises Damaged when it is not the MD5 of what was sent."""
    if answered.strip('"').lower() != etag:
        raise Damaged("the ETag is not the MD5 of what was sent")
    return etag
