"""SwiftImageStore: images as static large objects of one container, through python-swiftclient's native API.

It owns the meaning of requests on Swift. It refuses to interpret keys and bytes, and to send, retry or wait: that is the
client's. Segments lie apart from all keys, under FOLDER. A listing may lag behind: it proposes, a look at the object decides.
An upload is unfinished while segments of it exist and no object says that it is made of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self
from uuid import uuid4

from pydantic import BaseModel
from swiftclient import client as swift
from swiftclient.exceptions import ClientException

from agents.image_stores.base import Limits, ObjectInfo, PartInfo
from agents.image_stores.details import read_details
from agents.image_stores.probe import probe
from agents.image_stores.security import ahead
from agents.image_stores.several import each
from agents.image_stores.swift_client import BLOCK, Grant, Line, SwiftClient, status_of, understand
from agents.image_stores.swift_links import ALIAS_OF, make_alias, new_key, presign
from agents.image_stores.swift_settings import SwiftSettings, find_account
from agents.image_stores.swift_upload import BEGUN, FOLDER, MADE_BY, PART_SIZE, SwiftUpload, put_bytes, segments_of
from agents.image_stores.trouble import Damaged, at, opened
from schema.failure import Failed, Refused, WorkFailed, WorkRetryable
from schema.image import StoreSpec

log = logging.getLogger(__name__)
MIB = 1 << 20
SMALLEST_PART = MIB
LARGEST_PART = 5 << 30
GOOD_PART = 32 * MIB
"""Each segment costs the servers 9 to 13 ms of processor time, besides its bytes; a manifest looks at each of them."""
MOST_PARTS = 10_000
"""Of one object, also where manifests of manifests would allow more."""
USUAL = {"slo": {"max_manifest_segments": 1000, "min_segment_size": 1}, "swift": {}, "tempurl": {}}
"""What is assumed of a Swift that does not say (`/info` is switched off)."""
WIDTH = 16
"""Requests at once where many small ones are needed."""
SWEEPS = 5
LAG_S = 20.0
"""How long a listing may lag behind while a store is tested."""
MAX_PAGES = 1_000_000


class SwiftImageStore:
    """A container, or a part of one (every key starts with the installation's prefix)."""

    PROVIDER: ClassVar[str] = "swift"
    SCOPE: ClassVar[str] = "REGION"
    CAPABILITIES: ClassVar[frozenset[str]] = frozenset(
        {"ranged_read", "parallel_parts", "presigned_get", "integrity_md5", "resume_upload", "free_room"})
    Settings: ClassVar[type[BaseModel]] = SwiftSettings
    page_size = 10_000
    """Names asked for in one page of a listing."""

    def __init__(self, settings: SwiftSettings, client: SwiftClient, info: Mapping[str, Any]) -> None:
        self.settings, self.client, self.info = settings, client, info
        self.container, self.segments = client.account.container, client.account.segments
        self.most_entries = int(info["slo"].get("max_manifest_segments", 1000))
        """Of one manifest."""

    @classmethod
    async def open(cls, spec: StoreSpec, secrets: Mapping[str, str]) -> Self:
        """Sign in and ask what this Swift can do. The containers are looked at when they are used, made by `test`.

        Raises Refused naming the detail at fault, or WorkRetryable when the store is away for now.
        """
        settings = read_details(SwiftSettings, spec, secrets)
        account = await asyncio.to_thread(find_account, spec, settings)  # looks for the file of authorities
        client = SwiftClient(settings, account, spec.name)
        try:
            return cls(settings, client, await opened(
                f"open the container {account.container}", settings.maxerrorretry, lambda: _capabilities(client),
                lambda error: understand(error, auth_url=account.auth_url, url="")))
        except BaseException:
            await client.aclose()
            raise

    @property
    def limits(self) -> Limits:
        """From the cluster's own word; a manifest may name manifests, so parts may be its entries squared."""
        least = int(self.info["slo"].get("min_segment_size", 1))
        most = int(self.info.get("swift", {}).get("max_file_size", LARGEST_PART)) // MIB * MIB
        return Limits(min_part=max(SMALLEST_PART, least), max_part=min(LARGEST_PART, most),
                      max_parts=min(MOST_PARTS, self.most_entries**2), good_part=min(GOOD_PART, most))

    # --- objects ------------------------------------------------------------------------------------------------------

    async def look(self, key: str) -> Mapping[str, str] | None:
        """An object's headers, or None. A missing container is a failure, not an absent object."""
        try:
            found: Mapping[str, str] = await self.client.ask(f"look at {key}", lambda line, grant: swift.head_object(
                grant.url, grant.token, self.container, key, http_conn=line.http), plain=(404,))
        except ClientException:
            await self._need_container()
            return None
        return found

    async def _need_container(self) -> None:
        await self.client.ask(f"open the container {self.container}", lambda line, grant: swift.head_container(
            grant.url, grant.token, self.container, http_conn=line.http))

    async def stat(self, key: str) -> ObjectInfo | None:
        """The object, or None."""
        seen = await self.look(key)
        return None if seen is None else ObjectInfo(key=key, size=int(seen["content-length"]))

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """One ranged GET; after a broken answer the rest is asked for, which also shows whether a segment is missing."""
        if length <= 0:
            return b""
        got, end = bytearray(), offset + length

        def get(line: Line, grant: Grant) -> None:
            start = offset + len(got)
            headers, body = swift.get_object(grant.url, grant.token, self.container, key, resp_chunk_size=BLOCK,
                                             headers={"Range": f"bytes={start}-{end - 1}"}, http_conn=line.http)
            expected = len(got) + _expected(headers, start, end - start)
            for piece in body:
                line.check()
                got.extend(piece)
            if len(got) != expected:
                raise Damaged(f"{len(got)} bytes of {expected}")

        try:
            await self.client.ask(f"read {key}", get, plain=(404, 409, 416))
        except ClientException as error:
            if status_of(error) == 404:
                await self._need_container()
                raise WorkFailed(f"{at(f'read {key}', self.client.name)}: the object is absent",
                                 remedy="it was deleted or never written") from None
            if status_of(error) == 409:
                raise _broken(key, self.client.name) from None
        except WorkRetryable:  # a segment that is missing a few bytes further on is answered with 500, or cut off
            if not await self._has_all(self.container, key, offset + len(got), end):
                raise _broken(key, self.client.name) from None
            raise
        return bytes(got)  # nothing when all of it lies past the end

    async def _has_all(self, container: str, name: str, start: int, end: int) -> bool:
        """Whether every segment that a large object has between two offsets is there as its manifest says."""
        def get(line: Line, grant: Grant) -> Any:
            headers, body = swift.get_object(grant.url, grant.token, container, name, query_string="multipart-manifest=get",
                                             http_conn=line.http)
            try:
                return json.loads(body) if headers.get("x-static-large-object") else []
            except ValueError:
                raise Damaged("the manifest is not whole") from None

        at = 0
        for entry in await self.client.ask(f"look at the segments of {name}", get, absent=(404,)) or []:
            size, (_, inside, segment) = int(entry["bytes"]), entry["name"].split("/", 2)
            if start < at + size and at < end:
                if entry.get("sub_slo"):
                    whole = await self._has_all(inside, segment, start - at, end - at)
                else:
                    seen = await self._segment(inside, segment)
                    whole = seen is not None and seen["etag"].strip('"') == entry["hash"]
                if not whole:
                    return False
            at += size
        return True

    async def put(self, key: str, body: bytes) -> None:
        """One PUT with its MD5; the segments of an object that it replaces go."""
        before = await self._segment(self.container, key)
        await self.client.ask(f"write {key}", lambda line, grant: put_bytes(line, grant, self.container, key, body), changes=True)
        if before is not None and before.get(MADE_BY):
            await self.sweep(segments_of(key, before[MADE_BY]))

    async def begin(self, key: str, *, part_size: int) -> SwiftUpload:
        """Start an upload under a prefix of its own, after removing what all others of this key left."""
        limits = self.limits
        if not limits.min_part <= part_size <= limits.max_part:
            raise WorkFailed(f"parts of {part_size} bytes are outside {limits.min_part} to {limits.max_part}")
        looks: list[Callable[[], Awaitable[None]]] = [partial(self._end_others, key)]
        if self.container != self.segments:  # else its listing has said already whether it is there
            looks.append(self._need_container)
        await each(looks, lambda look: look(), width=len(looks))
        upload = SwiftUpload(self, key, uuid4().hex, part_size)
        await upload.begin()
        return upload

    async def _end_others(self, key: str) -> None:
        """What lies under the uploads of this key goes, but the segments of the object that is there."""
        if [name async for name, _, _ in self.names(self.segments, segments_of(key))]:
            seen = await self.look(key)
            live = seen.get(MADE_BY, "") if seen is not None else ""
            await self.sweep(segments_of(key), keep=segments_of(key, live) if live else "")

    async def resume(self, key: str, *, part_size: int) -> SwiftUpload | None:
        """The one upload of this key that no object is made of, begun with parts of this size."""
        seen = await self.look(key)
        live = seen.get(MADE_BY, "") if seen is not None else ""
        start = segments_of(key)
        found = {name.removeprefix(start).partition("/")[0] async for name, _, _ in self.names(self.segments, start)} - {live}
        if len(found) != 1:
            return None
        [upload] = found
        mark = await self._segment(self.segments, segments_of(key, upload) + BEGUN)
        if mark is None or mark.get(PART_SIZE) != str(part_size):
            return None
        resumed = SwiftUpload(self, key, upload, part_size)
        return resumed if _fit(await resumed.parts(), part_size) else None

    async def delete(self, key: str) -> None:
        """The object with the segments that its manifest names (an alias without), then whatever lies under its uploads."""
        seen = await self.look(key)
        if seen is not None and seen.get(ALIAS_OF):
            await self.remove(key)  # what its manifest names is another object's
            return
        if seen is not None and seen.get("x-static-large-object"):
            # Its answer tells little (200 also when parts were not found): what follows makes sure.
            await self.client.ask(f"delete {key}", lambda line, grant: swift.delete_object(
                grant.url, grant.token, self.container, key, http_conn=line.http, query_string="multipart-manifest=delete"),
                changes=True, absent=(404,))
        if seen is not None:
            await self.remove(key)
        await self.sweep(segments_of(key))

    async def remove(self, key: str) -> None:
        """The object without its segments."""
        await self.client.ask(f"delete {key}", lambda line, grant: swift.delete_object(
            grant.url, grant.token, self.container, key, http_conn=line.http), changes=True, absent=(404,))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Pages of `page_size` names."""
        async for name, size, _ in self.names(self.container, below(prefix), skip="" if prefix else FOLDER):
            yield ObjectInfo(key=name, size=size)

    async def names(self, container: str, start: str, *, skip: str = "") -> AsyncIterator[tuple[str, int, str]]:
        """Name, bytes and MD5 of everything in a container that starts with the string `start`, and not with `skip`."""
        marker = ""
        for _ in range(MAX_PAGES):
            def page(line: Line, grant: Grant, after: str = marker) -> Any:
                try:
                    return swift.get_container(grant.url, grant.token, container, prefix=start, marker=after,
                                               limit=self.page_size, http_conn=line.http)[1]
                except ValueError:
                    raise Damaged("a page of the listing is not whole") from None

            entries = await self.client.ask(f"list {start} of the container {container}", page)
            for entry in entries:
                name = str(entry.get("name", "/"))
                if not name.endswith("/") and not (skip and name.startswith(skip)):  # a slash: other tools' folders
                    yield name, int(entry["bytes"]), str(entry.get("hash", ""))
            if not entries:
                return
            following = str(entries[-1].get("name", marker))
            if skip and following.startswith(skip):
                following = skip[:-1] + "0"  # the character after the slash: past all of them at once
            if following <= marker:
                break
            marker = following
        raise WorkFailed(f"{at(f'list {start}', self.client.name)}: the store's pages never end", field="url",
                         remedy="look into the store's log")

    # --- segments -----------------------------------------------------------------------------------------------------

    async def unfinished(self, prefix: str) -> Sequence[str]:
        """Keys with segments that their object, if there is one, is not made of."""
        found: dict[str, dict[str, list[str]]] = {}
        async for name, _, _ in self.names(self.segments, FOLDER + below(prefix)):
            key, upload, _number = name.removeprefix(FOLDER).rsplit("/", 2)
            names = found.setdefault(key, {}).setdefault(upload, [name, name])
            names[1] = name  # the first and the last are enough to see whether the listing is true
        left: list[str] = []

        async def judge(key: str) -> None:
            seen = await self.look(key)
            live = seen.get(MADE_BY, "") if seen is not None else ""
            for upload, names in found[key].items():
                if upload != live and (await self.has_segment(names[-1]) or await self.has_segment(names[0])):
                    left.append(key)
                    return

        await each(found, judge, width=WIDTH)
        return sorted(left)

    async def has_segment(self, name: str) -> bool:
        """Whether it is there, whatever listings say."""
        return await self._segment(self.segments, name) is not None

    async def _segment(self, container: str, name: str) -> Mapping[str, str] | None:
        found: Mapping[str, str] | None = await self.client.ask("look at a segment", lambda line, grant: swift.head_object(
            grant.url, grant.token, container, name, http_conn=line.http), absent=(404,))
        return found

    async def remove_segment(self, name: str) -> None:
        """Delete one; absent is fine."""
        await self.client.ask("delete a segment", lambda line, grant: swift.delete_object(
            grant.url, grant.token, self.segments, name, http_conn=line.http), absent=(404,))

    async def remove_segments(self, names: Iterable[str]) -> None:
        """Delete these."""
        await each(names, self.remove_segment, width=WIDTH)

    async def sweep(self, start: str, *, keep: str = "") -> None:
        """Delete every segment whose name starts with `start` and not with `keep`, until none is left."""
        gone: set[str] = set()
        for _ in range(SWEEPS):
            names = [name async for name, _, _ in self.names(self.segments, start) if not keep or not name.startswith(keep)]
            left = [name for name in names if name not in gone]
            again = [name for name in names if name in gone]  # the listing lags, or it was written again
            left += [name for name in again if await self.has_segment(name)]
            if not left:
                return
            await self.remove_segments(left)
            gone.update(left)
        raise WorkRetryable(f"segments under {start} are still there after {SWEEPS} deletions", field="url",
                            remedy="see who writes them; delete the object again later")

    # --- links --------------------------------------------------------------------------------------------------------

    async def presign(self, key: str, expires_s: int) -> str:
        """A URL by which anyone may get the object for `expires_s` seconds (at most 7 days). Treat it as a secret."""
        if self.segments != self.container and MADE_BY in (await self.look(key) or {}):
            raise _apart()
        return await presign(self, key, expires_s)

    async def alias(self, key: str, to: str) -> None:
        """A manifest that names the object: it takes no bytes, and gives them for as long as the object is there."""
        if self.segments != self.container:
            raise _apart()
        await make_alias(self, key, to)

    async def rotate(self) -> None:
        """Sign links with a new key. Those of the key before stay valid until the next rotation, older ones end now."""
        await new_key(self)

    # --- the store itself ---------------------------------------------------------------------------------------------

    async def free_bytes(self) -> int | None:
        """By the quotas of the container that holds the bytes and of the account; None without any."""
        def rooms(line: Line, grant: Grant) -> list[int]:
            container = swift.head_container(grant.url, grant.token, self.segments, http_conn=line.http)
            account = swift.head_account(grant.url, grant.token, http_conn=line.http)
            return [max(0, int(found[quota]) - int(found.get(used, 0))) for found, quota, used in (
                (container, "x-container-meta-quota-bytes", "x-container-bytes-used"),
                (account, "x-account-meta-quota-bytes", "x-account-bytes-used")) if found.get(quota, "").isdigit()]

        return min(await self.client.ask("look at the quotas", rooms), default=None)

    @property
    def secured(self) -> str:
        """By the address that gives tokens: the store's own must then be https too."""
        if not self.client.account.auth_url.startswith("https:"):
            return "none, the connection is not encrypted"
        if self.settings.insecure:
            return "TLS, the certificate is not verified (insecure)"
        return "TLS, the certificate was verified" + (" by cafile" if self.settings.cafile else "")

    async def clock_ahead(self) -> float | None:
        """By the date of an answer."""
        return ahead(await self.client.ask("ask for the time", lambda line, grant: str(
            line.ask("GET", "/info", headers={})[1].get("Date", ""))))

    async def test(self, prefix: str) -> Sequence[str]:
        """Make the containers where they are absent; then the steps every store is asked."""
        for container, field in {self.container: "container", self.segments: "segmentcontainer"}.items():
            try:
                await self._make(container, f"details.{field}")
            except Failed as error:
                raise Refused(error.failure.cause, field=error.failure.field, remedy=error.failure.remedy) from None
        return await probe(self, prefix, settle_s=LAG_S)

    async def _make(self, container: str, field: str) -> None:
        action, policy = f"make the container {container}", self.settings.storagepolicy
        seen = await self.client.ask(action, lambda line, grant: swift.head_container(
            grant.url, grant.token, container, http_conn=line.http), absent=(404,))
        if seen is not None:
            there = seen.get("x-storage-policy", "")
            if policy and there and there.lower() != policy.lower():
                raise Refused(f"the container {container} is there and has another policy, {there}",
                              field="details.storagepolicy", remedy="name another container, or leave the policy out")
            return
        try:
            await self.client.ask(action, lambda line, grant: swift.put_container(
                grant.url, grant.token, container, headers={"X-Storage-Policy": policy} if policy else None,
                http_conn=line.http), plain=(400,))
        except ClientException:
            wrong = policy and policy.lower() not in {str(one.get("name", "")).lower() for one in self._policies()}
            cause = "the cluster has no such policy" if wrong else "the store does not allow this name"
            raise Refused(f"{action}: {cause}", field="details.storagepolicy" if wrong else field, remedy="correct it") from None

    def _policies(self) -> Sequence[Mapping[str, Any]]:
        return self.info.get("swift", {}).get("policies") or ()

    async def aclose(self) -> None:
        """Close all connections. Twice is fine."""
        await self.client.aclose()


async def _capabilities(client: SwiftClient) -> Mapping[str, Any]:
    """What the cluster says it can do. Raises Refused when it lacks static large objects."""
    def ask(line: Line, grant: Grant) -> Mapping[str, Any] | None:
        status, _, body = line.ask("GET", "/info")
        if status >= 500:
            raise ClientException("", http_status=status)
        try:
            found = json.loads(body) if status == 200 else None
        except ValueError:
            found = None
        return found if isinstance(found, dict) and isinstance(found.get("swift"), dict) else None

    info = await client.once(ask)
    if info is not None and not isinstance(info.get("slo"), dict):
        raise Refused("this Swift has no static large objects", field="url", remedy="put slo into its proxy's pipeline")
    return info or USUAL


def _apart() -> WorkFailed:
    return WorkFailed("a link does not open segments in another container", field="details.segmentcontainer",
                      remedy="leave segmentcontainer out for stores whose images are linked to")


def _broken(key: str, name: str) -> WorkFailed:
    return WorkFailed(f"{at(f'read {key}', name)}: a segment of the object is missing or was changed",
                      field="details.segmentcontainer", remedy="use another copy of the image")


def below(prefix: str) -> str:
    """The string that names below a path start with."""
    return f"{prefix.rstrip('/')}/" if prefix else ""


def _fit(parts: Mapping[int, PartInfo], part_size: int) -> bool:
    last = max(parts, default=0)
    return all(info.size == part_size or (info.size < part_size and number == last) for number, info in parts.items())


def _expected(headers: Mapping[str, str], offset: int, length: int) -> int:
    """Bytes that a ranged answer must have. Raises WorkFailed when the store ignored the range."""
    span, slash, total = headers.get("content-range", "").partition("/")
    if slash and total.isdigit() and span.startswith(f"bytes {offset}-"):
        return max(0, min(length, int(total) - offset))
    if offset == 0 and int(headers.get("content-length", length + 1)) <= length:
        return int(headers["content-length"])
    raise WorkFailed("the store ignores the Range header", field="url", remedy="switch off what rewrites its answers")
