"""S3ImageStore: images as objects of one bucket, through aiobotocore.

It owns requests, their retries and their meaning on S3. It refuses to interpret keys and bytes. Every request goes
through `ask`, the only place that retries, waits and raises; botocore's own retries are off. Bodies are not hashed for
the signature (UNSIGNED-PAYLOAD): each part carries a signed digest that the store checks, so a part is acknowledged only
when the right bytes arrived. It is the SHA-256 that the manifest needs anyway where the store has shown that it refuses a
wrong one; elsewhere a Content-MD5, computed in a thread, and the ETag answered is compared.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import logging
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Self, TypeVar

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import ClientError
from botocore.httpsession import get_cert_path
from botocore.loaders import Loader
from pydantic import BaseModel

from agents import stall
from agents.image_stores.base import Limits, ObjectInfo, Seen
from agents.image_stores.details import read_details
from agents.image_stores.probe import probe
from agents.image_stores.s3_copy import copy
from agents.image_stores.s3_errors import understand
from agents.image_stores.s3_ranges import Ranges
from agents.image_stores.s3_settings import Place, S3Settings, find_place
from agents.image_stores.s3_upload import UNKNOWN, Body, S3Upload, answer_s, check_etag, md5, refuses_wrong_sum, send
from agents.image_stores.security import ahead
from agents.image_stores.trouble import Damaged, Trouble, at, back_off, opened
from agents.uninterrupted import in_thread
from schema.failure import WorkFailed
from schema.image import StoreSpec

log = logging.getLogger(__name__)
T = TypeVar("T")

POOL = 40
"""Connections of one store: four transfers of ten parts each."""
UNSENT = 256 << 10
"""Bytes of a body that wait in the kernel beside those under way."""
PIECE = 256 << 10
"""Bytes of an answer that are taken at once; the client keeps twice as many of each answer."""
MAX_PAGES = 1_000_000
CHECKS: dict[tuple[str, str], bool] = {}
"""(endpoint, bucket) -> whether the store refuses a part whose SHA-256 is wrong, as far as this process has seen."""
MAX_CHECKS = 1000
# At DEBUG these write whole requests: bodies, headers, canonical requests. Nobody needs them in a log for ever.
_TALKERS = ("botocore", "aiobotocore")


class S3ImageStore:
    """A bucket, or a part of one (every key starts with the installation's prefix)."""

    PROVIDER: ClassVar[str] = "s3"
    SCOPE: ClassVar[str] = "REGION"
    CAPABILITIES: ClassVar[frozenset[str]] = frozenset(
        {"ranged_read", "parallel_parts", "presigned_get", "integrity_md5", "resume_upload"})
    Settings: ClassVar[type[BaseModel]] = S3Settings
    page_size = 1000
    """Keys asked for in one page of a listing."""
    name = ""
    """The operator's name for this store, for error texts."""

    def __init__(self, settings: S3Settings, place: Place, client: Any, stack: AsyncExitStack) -> None:
        self.settings, self.place, self.client = settings, place, client
        self.bucket = place.bucket
        self._stack = stack
        # Through a proxy the client alone knows the way.
        self._ranges = None if settings.proxy else Ranges(
            self.presign, self.silence_s, POOL, get_cert_path(settings.cafile or True))

    @classmethod
    async def open(cls, spec: StoreSpec, secrets: Mapping[str, str]) -> Self:
        """Connect and list once, which proves address, credentials and bucket.

        Raises Refused naming the detail at fault, or WorkRetryable when the store is away for now.
        """
        settings = read_details(S3Settings, spec, secrets)
        place = find_place(spec, settings)
        session = await asyncio.to_thread(_warm_session)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(session.create_client(
                "s3", region_name=settings.region, endpoint_url=place.endpoint, use_ssl=settings.usehttps is not False,
                # To read the authorities takes 20 ms, and who speaks plain HTTP has no use for them.
                verify=(settings.cafile or True) if place.tls or settings.proxy else False, aws_access_key_id=settings.accesskey,
                aws_secret_access_key=settings.secretkey.get_secret_value(), config=_config(settings)))
            # A body is sent without asking first: the round trip costs more than the rare refusal saves.
            client.meta.events.register_last("before-call.s3", functools.partial(
                _before_call, silence_s=settings.sockettimeout / 1000))
            store = cls(settings, place, client, stack)
            store.name = spec.name
            await store._reach()
            store._stack = stack.pop_all()
            return store
        raise AssertionError("unreachable")

    async def _reach(self) -> None:
        await opened(f"open the bucket {self.bucket}", self.settings.maxerrorretry,
                     lambda: self.client.list_objects_v2(Bucket=self.bucket, MaxKeys=1),
                     lambda error: understand(error, endpoint=self.place.shown))

    @property
    def silence_s(self) -> float:
        """Seconds without a byte after which a connection counts as broken."""
        return self.settings.sockettimeout / 1000

    @property
    def limits(self) -> Limits:
        """As AWS has them; other S3 stores keep to them."""
        return Limits(min_part=5 << 20, max_part=5 << 30, max_parts=10_000)

    async def stat(self, key: str) -> ObjectInfo | None:
        """The object, or None. A missing bucket is a failure, not an absent object."""
        try:
            found = await self.ask(f"look at {key}", lambda: self.client.head_object(Bucket=self.bucket, Key=key),
                                    plain=("404", "403", "400", "NoSuchKey"))
        except ClientError as error:
            # An answer to HEAD has no body, so no reason; a listing of that one key has.
            listed = await self.ask(f"look at {key}", lambda: self.client.list_objects_v2(
                Bucket=self.bucket, Prefix=key, MaxKeys=1))
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                return None
            log.debug("HEAD refused, listing answered with %d keys", listed.get("KeyCount", 0))
            raise Trouble(code="AccessDenied", field="details.accesskey", cause="the account may not read the object",
                          remedy="allow it to get objects").failure(at(f"look at {key}", self.name)) from None
        return ObjectInfo(key=key, size=int(found["ContentLength"]))

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """One ranged GET; a short or broken answer is asked for again."""
        found = bytearray()

        def room(size: int) -> memoryview:
            found[:] = bytes(size)
            return memoryview(found)

        await self._read(key, offset, length, room)
        return bytes(found)

    async def read_into(self, key: str, offset: int, buffer: memoryview, seen: Seen | None = None) -> int:
        """See ReadsInto."""
        if self._ranges is not None and await self._ranges.read_into(key, offset, buffer, seen):
            return len(buffer)
        count = await self._read(key, offset, len(buffer), lambda size: buffer[:size])
        if seen is not None:
            await in_thread(seen, 0, buffer[:count])
        return count

    async def _read(self, key: str, offset: int, length: int, room: Callable[[int], memoryview]) -> int:
        """`length` bytes, fewer only past the end, into what `room` gives for as many as there are."""
        if length <= 0:
            return 0

        async def get() -> int:
            answer = await self.client.get_object(Bucket=self.bucket, Key=key,
                                                  Range=f"bytes={offset}-{offset + length - 1}")
            async with answer["Body"] as body:
                expected = _expected(answer, offset, length)
                view, at = room(expected), 0
                while piece := await body.read(PIECE):  # as much as has come, and no more waits meanwhile
                    if at + len(piece) > expected:
                        raise Damaged(f"more than {expected} bytes")
                    view[at:at + len(piece)] = piece
                    at += len(piece)
                    stall.moved()
            if at != expected:
                raise Damaged(f"{at} bytes of {expected}")
            return expected

        try:
            return await self.ask(f"read {key}", get, plain=("InvalidRange", "416"))
        except ClientError:
            return 0  # past the end

    async def put(self, key: str, body: bytes) -> None:
        """One PUT with its MD5."""
        digest = await md5(body)

        async def put() -> None:
            answer = await send(Body(body), self.silence_s, lambda content: self.client.put_object(
                Bucket=self.bucket, Key=key, Body=content, ContentMD5=base64.b64encode(digest).decode()))
            check_etag(answer, digest)

        await self.ask(f"write {key}", put, changes=True)

    async def begin(self, key: str, *, part_size: int) -> S3Upload:
        """Create a multipart upload after ending all others of this key."""
        limits = self.limits
        if not limits.min_part <= part_size <= limits.max_part:
            raise WorkFailed(f"parts of {part_size} bytes are outside {limits.min_part} to {limits.max_part}")
        await self.end_uploads(key)
        place = self.place.shown, self.bucket
        if CHECKS.get(place, True):
            upload = await self._create(key, ChecksumAlgorithm="SHA256")
            if upload and (place in CHECKS or await refuses_wrong_sum(self, key, upload)):
                CHECKS[place] = True
                return S3Upload(self, key, upload, part_size, sums=True)
            if len(CHECKS) < MAX_CHECKS:
                CHECKS[place] = False
            await self.end_uploads(key)
        return S3Upload(self, key, await self._create(key), part_size)

    async def resume(self, key: str, *, part_size: int) -> S3Upload | None:
        """The upload, when there is exactly one and no part of it contradicts `part_size` (S3 keeps no part size)."""
        found = [upload for of, upload in await self.uploads(key) if of == key]
        if len(found) != 1:
            return None
        place = self.place.shown, self.bucket
        if place not in CHECKS and len(CHECKS) < MAX_CHECKS:
            # On an upload of its own, which would replace no part of ours. Interrupted, there are two: neither is resumed.
            other = await self._create(key, ChecksumAlgorithm="SHA256")
            CHECKS[place] = bool(other) and await refuses_wrong_sum(self, key, other)
            if other:
                await self.abort_upload(key, other)
        upload = S3Upload(self, key, found[0], part_size, sums=CHECKS.get(place, False))
        return upload if await upload.take_up() else None

    async def _create(self, key: str, **more: str) -> str:
        """A new upload's id; empty when the store does not know what is in `more`."""
        tries = 0

        async def create() -> str:
            nonlocal tries
            tries += 1
            answer = await self.client.create_multipart_upload(Bucket=self.bucket, Key=key,
                                                               ContentType="application/octet-stream", **more)
            return str(answer["UploadId"])

        try:
            upload: str = await self.ask(f"begin {key}", create, plain=UNKNOWN if more else ())
        except ClientError:
            return ""
        if tries > 1:  # an answer was lost: there may be an upload nobody knows
            await self.end_uploads(key, but=upload)
        return upload

    async def delete(self, key: str) -> None:
        """Unfinished uploads, then the object."""
        await self.end_uploads(key)
        await self.ask(f"delete {key}", lambda: self.client.delete_object(Bucket=self.bucket, Key=key),
                        changes=True, absent=("NoSuchKey",))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Pages of `page_size` keys."""
        token: dict[str, str] = {}
        for _ in range(MAX_PAGES):
            page = await self.ask(f"list {prefix}", functools.partial(
                self.client.list_objects_v2, Bucket=self.bucket, Prefix=below(prefix), MaxKeys=self.page_size, **token))
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):  # some stores list folders
                    yield ObjectInfo(key=entry["Key"], size=int(entry["Size"]))
            if not page.get("IsTruncated"):
                return
            following = {"ContinuationToken": page.get("NextContinuationToken", "")}
            if following == token or not following["ContinuationToken"]:  # there is more, and no way to it
                break
            token = following
        raise WorkFailed(f"{at(f'list {prefix}', self.name)}: the store's pages never end", field="url",
                         remedy="look into the store's log")

    async def unfinished(self, prefix: str) -> Sequence[str]:
        """From the bucket's list of multipart uploads."""
        return sorted({key for key, _ in await self.uploads(below(prefix))})

    async def uploads(self, start: str) -> Sequence[tuple[str, str]]:
        """Key and upload id of every unfinished upload whose key starts with the string `start`."""
        found: dict[tuple[str, str], None] = {}
        marker: dict[str, str] = {}
        for _ in range(MAX_PAGES):
            page = await self.ask("list unfinished uploads", functools.partial(
                self.client.list_multipart_uploads, Bucket=self.bucket, Prefix=start, MaxUploads=self.page_size,
                **marker))
            found.update(((entry["Key"], entry["UploadId"]), None) for entry in page.get("Uploads", []))
            if not page.get("IsTruncated"):
                return list(found)
            following = {"KeyMarker": page.get("NextKeyMarker", ""),
                         "UploadIdMarker": page.get("NextUploadIdMarker", "")}
            if following == marker:
                break
            marker = following
        raise WorkFailed("list unfinished uploads: the store's pages never end", field="url",
                         remedy="look into the store's log")

    async def end_uploads(self, key: str, *, but: str = "") -> None:
        """Abort every unfinished upload of exactly this key, `but` one."""
        for found, upload in await self.uploads(key):
            if found == key and upload != but:
                await self.abort_upload(key, upload)

    async def abort_upload(self, key: str, upload: str) -> None:
        """Abort one upload; one that is already gone is fine."""
        await self.ask(f"end the upload of {key}", lambda: self.client.abort_multipart_upload(
            Bucket=self.bucket, Key=key, UploadId=upload), absent=("NoSuchUpload", "NoSuchKey"))

    async def alias(self, key: str, to: str) -> None:
        """A copy that the store makes: it takes as many bytes again until it is deleted."""
        await copy(self, key, to)

    async def copy_inside(self, key: str, to: str) -> None:
        """The same copy: it is an object of its own."""
        await copy(self, key, to)

    async def presign(self, key: str, expires_s: int) -> str:
        """A URL by which anyone may get the object for `expires_s` seconds (at most 7 days). Treat it as a secret."""
        if not 1 <= expires_s <= 7 * 86400:
            raise WorkFailed(f"a link of {expires_s} s is outside 1 s to 7 days")
        url: str = await self.client.generate_presigned_url("get_object", Params={"Bucket": self.bucket, "Key": key},
                                                            ExpiresIn=expires_s)
        return url

    @property
    def secured(self) -> str:
        """By the endpoint's scheme; what botocore verifies by is not the machine's but cafile's or certifi's."""
        if (self.place.endpoint or "https:").startswith("https:"):
            return "TLS, the certificate was verified" + (" by cafile" if self.settings.cafile else "")
        return "none, the connection is not encrypted"

    async def clock_ahead(self) -> float | None:
        """By the date of an answer."""
        said = await self.ask("ask for the time", lambda: self.client.list_objects_v2(Bucket=self.bucket, MaxKeys=1))
        return ahead(str(said["ResponseMetadata"]["HTTPHeaders"].get("date", "")))

    async def test(self, prefix: str) -> Sequence[str]:
        """The steps every store is asked."""
        return await probe(self, prefix, field="details.endpoint")

    async def aclose(self) -> None:
        """Close all connections. Twice is fine."""
        if self._ranges is not None:
            self._ranges.close()
        await self._stack.aclose()

    async def ask(self, action: str, call: Callable[[], Awaitable[T]], *, changes: bool = False,
                   plain: tuple[str, ...] = (), absent: tuple[str, ...] = ()) -> T | Any:
        """Send one request until it is answered, refused, or the retries are used up.

        `changes`: its effect is visible, so a lost answer is Unknown. ClientErrors with a code in `plain` are raised as
        they are; a code in `absent` counts as success and answers None.
        """
        for attempt in range(self.settings.maxerrorretry + 1):
            try:
                return await call()
            except Exception as error:
                code = error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""
                if code in plain:
                    raise
                if code in absent:
                    return None
                trouble = understand(error, endpoint=self.place.shown)
                if trouble is None:
                    raise
                if not trouble.passes or attempt == self.settings.maxerrorretry:
                    raise trouble.failure(at(action, self.name), changes=changes) from None
                log.info("%s: %s (%s), attempt %d of %d", action, trouble.cause, trouble.code, attempt + 1,
                         self.settings.maxerrorretry + 1)
            await back_off(attempt)
        raise AssertionError("unreachable")


def below(prefix: str) -> str:
    """The string that keys below a path start with."""
    return f"{prefix.rstrip('/')}/" if prefix else ""


def _expected(answer: Mapping[str, Any], offset: int, length: int) -> int:
    """Bytes that a ranged answer must have. Raises WorkFailed when the store ignored the range."""
    span, slash, total = str(answer.get("ContentRange", "")).partition("/")
    if slash and total.isdigit() and span.startswith(f"bytes {offset}-"):
        return max(0, min(length, int(total) - offset))
    if offset == 0 and int(answer["ContentLength"]) <= length:
        return int(answer["ContentLength"])
    raise WorkFailed("the store ignores the Range header", field="url", remedy="switch off what rewrites its answers")


def _before_call(params: dict[str, Any], context: dict[str, Any], silence_s: float, **_: Any) -> None:
    params["headers"].pop("Expect", None)
    if body := params.get("body"):
        context["read_timeout"] = answer_s(silence_s, len(body))


def _warm_session() -> AioSession:
    """The session that all stores of the process share: what differs between them is in their clients. Blocking at first."""
    for name in _TALKERS:
        talker = logging.getLogger(name)
        talker.setLevel(max(talker.level, logging.INFO))
    with _LOADING:  # transfers begin together: each thread would make one of its own
        return _session()


_LOADING = threading.Lock()


@functools.cache
def _session() -> AioSession:
    """A session whose service model is already read (megabytes of JSON: not for the event loop).

    It looks at no file and no variable of the machine: an image store is what its details say.
    """
    session = get_session()
    for name in ("config_file", "credentials_file"):
        session.set_config_variable(name, os.devnull)
    loader = Loader()
    for kind in ("service-2", "endpoint-rule-set-1", "waiters-2", "paginators-1"):
        loader.load_service_model("s3", kind)
    for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
        loader.load_data(name)
    session.register_component("data_loader", loader)
    return session


def _socket(address: tuple[Any, ...], *, alive: bool) -> socket.socket:
    """A socket for one connection, arranged so that a cancelled transfer stops now and a slow one shows.

    Closing discards what the kernel has not sent yet (otherwise megabytes flow on after a cancel), and the kernel takes
    little more than is under way. The congestion window, thus the speed over long distances, stays free.
    """
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(alive))
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
    return made


def _config(settings: S3Settings) -> AioConfig:
    return AioConfig(
        connector_args={"socket_factory": functools.partial(_socket, alive=settings.usetcpkeepalive)},
        signature_version="s3v4", connect_timeout=settings.connectiontimeout / 1000,
        read_timeout=settings.sockettimeout / 1000, max_pool_connections=POOL,
        retries={"total_max_attempts": 1, "mode": "standard"},
        # The default would add a checksum that many stores refuse; Content-MD5 does the same everywhere.
        request_checksum_calculation="when_required", response_checksum_validation="when_required",
        proxies={"http": settings.proxy, "https": settings.proxy} if settings.proxy else {},
        s3={"addressing_style": "path" if settings.pathstyle else "virtual", "payload_signing_enabled": False},
    )
