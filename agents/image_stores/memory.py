"""MemoryImageStore: objects in this process, by url. For tests, dry runs and as the shortest complete plug-in.

It owns one dictionary per url, shared by everyone in the process who opens that url, so that an agent can be closed and
opened again. It refuses to touch disk or network. `bucket(url)` gives tests the inside: what is stored, and `before`,
an awaitable called with (operation, key) before each operation, which may raise or wait. Nobody serves its links but a test
that sets `links_at` and answers as `Bucket.linked` says.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self
from urllib.parse import quote
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from agents.image_stores.base import Bytes, Limits, ObjectInfo, PartInfo, PartSource
from agents.image_stores.details import read_details
from agents.image_stores.probe import probe
from agents.image_stores.trouble import at
from schema.failure import Refused, WorkFailed
from schema.image import StoreSpec


@dataclass(slots=True)
class Bucket:
    """What rests under one url."""

    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, tuple[str, dict[int, bytes]]] = field(default_factory=dict)
    """Upload id to key and parts."""
    part_sizes: dict[str, int] = field(default_factory=dict)
    """Upload id to the size of its parts."""
    before: Callable[[str, str], Awaitable[None]] | None = None
    secret: str = ""
    """When set, the secret key that `open` asks for."""
    links_at: str = ""
    """Where this dictionary's links are served, http://host:port."""
    signing: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def sign(self, key: str, expires: int) -> str:
        """What a link to this object until this time carries."""
        return hmac.new(self.signing, f"{expires} {key}".encode(), "sha256").hexdigest()

    def linked(self, key: str, query: Mapping[str, str], now: float) -> bytes | int:
        """What a link gives: the object, or 403 or 404."""
        expires, signature = query.get("expires", ""), query.get("signature", "")
        if not expires.isdigit() or int(expires) <= now or not hmac.compare_digest(signature, self.sign(key, int(expires))):
            return 403
        return self.objects.get(key, 404)


BUCKETS: dict[str, Bucket] = {}
"""The inside of every such store of this process by its URL: what a server is to the others."""


def bucket(url: str) -> Bucket:
    """The inside of the store under `url`, made when first asked for."""
    return BUCKETS.setdefault(url, Bucket())


class MemorySettings(BaseModel):
    """Details of a memory store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secretkey: SecretStr | None = Field(None, description="Stands for a real store's secret.")


class MemoryUpload:
    """An upload in memory."""

    def __init__(self, store: MemoryImageStore, key: str, part_size: int, parts: dict[int, bytes]) -> None:
        self._store, self._key, self._part_size = store, key, part_size
        self._id = uuid4().hex
        self._done: ObjectInfo | None = None
        store._bucket.uploads[self._id] = (key, parts)
        store._bucket.part_sizes[self._id] = part_size

    def _parts(self) -> dict[int, bytes]:
        found = self._store._bucket.uploads.get(self._id)
        if found is None:
            raise WorkFailed(f"{at(f'the upload of {self._key}', self._store.name)} was ended", remedy="begin again")
        return found[1]

    async def part(self, number: int, data: Bytes, *, sha256: str = "") -> PartInfo:
        """Keep a copy."""
        await self._store._called("part", self._key)
        limits = self._store.limits
        if not 1 <= number <= limits.max_parts or not 0 < len(data) <= self._part_size:
            raise WorkFailed(f"part {number} of {len(data)} bytes does not fit an upload in parts of {self._part_size}")
        kept = self._parts()[number] = bytes(data)
        return _info(kept)

    async def part_from(self, number: int, source: PartSource) -> PartInfo:
        """Keep a copy of all slices."""
        return await self.part(number, b"".join([bytes(view) async for view in source.slices()]))

    async def parts(self) -> Mapping[int, PartInfo]:
        """What is kept."""
        await self._store._called("parts", self._key)
        return {number: _info(data) for number, data in self._parts().items()}

    async def keep(self, number: int, *, sha256: str) -> None:
        """It is there; see that it is the right one."""
        data = self._parts().get(number)
        if data is None or _info(data).etag != sha256:
            raise WorkFailed(f"part {number} of {self._key} is not there", remedy="write it again")

    async def complete(self, size: int) -> ObjectInfo:
        """Join the parts."""
        await self._store._called("complete", self._key)
        if self._done is not None:
            return self._done
        parts = self._parts()
        if sorted(parts) != list(range(1, len(parts) + 1)):
            raise WorkFailed(f"parts of {self._key} are missing", remedy="write all parts, then complete")
        if any(len(parts[number]) != self._part_size for number in range(1, len(parts))):
            raise WorkFailed(f"a part of {self._key} other than the last is short")
        body = b"".join(parts[number] for number in sorted(parts))
        if len(body) != size:
            raise WorkFailed(f"the parts of {self._key} have {len(body)} bytes, not {size}")
        self._store._bucket.objects[self._key] = body
        del self._store._bucket.uploads[self._id]
        self._done = ObjectInfo(key=self._key, size=size)
        return self._done

    async def abort(self) -> None:
        """Forget the parts."""
        await self._store._called("abort", self._key)
        self._store._bucket.uploads.pop(self._id, None)


def _info(data: bytes) -> PartInfo:
    return PartInfo(size=len(data), etag=hashlib.sha256(data).hexdigest())


class MemoryImageStore:
    """Objects in a dictionary."""

    PROVIDER: ClassVar[str] = "memory"
    SCOPE: ClassVar[str] = "REGION"
    CAPABILITIES: ClassVar[frozenset[str]] = frozenset(
        {"ranged_read", "parallel_parts", "presigned_get", "resume_upload"})
    Settings: ClassVar[type[BaseModel]] = MemorySettings

    def __init__(self, bucket: Bucket, name: str = "") -> None:
        self._bucket, self.name = bucket, name

    @classmethod
    async def open(cls, spec: StoreSpec, secrets: Mapping[str, str]) -> Self:
        """Find or make the dictionary of this url."""
        settings = read_details(MemorySettings, spec, secrets)
        found = bucket(spec.url)
        given = settings.secretkey.get_secret_value() if settings.secretkey else ""
        if found.secret and given != found.secret:
            raise Refused("the store does not take this secret", field="details.secretkey", remedy="give the right one")
        return cls(found, spec.name)

    @property
    def limits(self) -> Limits:
        """As S3, but parts may be tiny."""
        return Limits(min_part=4096, max_part=5 << 30, max_parts=10_000)

    async def _called(self, operation: str, key: str) -> None:
        if self._bucket.before is not None:
            await self._bucket.before(operation, key)

    async def stat(self, key: str) -> ObjectInfo | None:
        """The object, or None."""
        await self._called("stat", key)
        body = self._bucket.objects.get(key)
        return None if body is None else ObjectInfo(key=key, size=len(body))

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """A slice."""
        await self._called("read", key)
        body = self._bucket.objects.get(key)
        if body is None:
            raise WorkFailed(f"{at(f'read {key}', self.name)}: the object is absent", remedy="it was deleted or never written")
        return body[offset : offset + length]

    async def put(self, key: str, body: bytes) -> None:
        """Replace."""
        await self._called("put", key)
        self._bucket.objects[key] = bytes(body)

    async def begin(self, key: str, *, part_size: int) -> MemoryUpload:
        """Start an upload; earlier ones of this key are ended."""
        await self._called("begin", key)
        self._end(key)
        return MemoryUpload(self, key, part_size, {})

    async def resume(self, key: str, *, part_size: int) -> MemoryUpload | None:
        """The upload under a new id: whoever had it before has it no more."""
        await self._called("resume", key)
        found = [upload for upload, (of, _) in self._bucket.uploads.items() if of == key]
        if len(found) != 1 or self._bucket.part_sizes[found[0]] != part_size:
            return None
        _, parts = self._bucket.uploads.pop(found[0])
        return MemoryUpload(self, key, part_size, parts)

    async def delete(self, key: str) -> None:
        """Forget."""
        await self._called("delete", key)
        self._end(key)
        self._bucket.objects.pop(key, None)

    def _end(self, key: str) -> None:
        for upload in [upload for upload, (of, _) in self._bucket.uploads.items() if of == key]:
            del self._bucket.uploads[upload]

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """As they are when asked."""
        await self._called("list", prefix)
        below = f"{prefix.rstrip('/')}/" if prefix else ""
        for key, body in sorted(self._bucket.objects.items()):
            if key.startswith(below):
                yield ObjectInfo(key=key, size=len(body))

    async def unfinished(self, prefix: str) -> Sequence[str]:
        """Keys with parts and no object yet."""
        await self._called("unfinished", prefix)
        below = f"{prefix.rstrip('/')}/" if prefix else ""
        return sorted({key for key, _ in self._bucket.uploads.values() if key.startswith(below)})

    async def presign(self, key: str, expires_s: int) -> str:
        """A URL of whoever serves this dictionary."""
        await self._called("presign", key)
        expires = int(time.time()) + expires_s
        return f"{self._bucket.links_at or 'memory:'}/{quote(key)}?expires={expires}&signature={self._bucket.sign(key, expires)}"

    async def alias(self, key: str, to: str) -> None:
        """The same bytes under another key."""
        await self._called("alias", key)
        if key not in self._bucket.objects:
            raise WorkFailed(f"{at(f'read {key}', self.name)}: the object is absent", remedy="it was deleted or never written")
        self._bucket.objects[to] = self._bucket.objects[key]

    async def test(self, prefix: str) -> Sequence[str]:
        """The same steps as any store."""
        return await probe(self, prefix)

    async def aclose(self) -> None:
        """Nothing to let go of: the dictionary stays for the next who opens this url."""
