"""A Swift store behind a misbehaving proxy, as fixtures, and what tests ask of it. Import the fixtures that are used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from agents.image_stores import trouble
from agents.image_stores.swift import SwiftImageStore
from agents.image_stores.swift_upload import segments_of
from schema.image import StoreSpec
from tests.contract.image_store import keys
from tests.services.s3_proxy import S3Proxy, Seen
from tests.services.swift import SwiftServer
from tests.services.swift_fixture import swift_spec

MIB = 1 << 20
PART = MIB


def is_part(seen: Seen) -> bool:
    return seen.method == "PUT" and "/.segments/" in seen.target and "multipart-manifest" not in seen.target \
        and not seen.target.endswith("/begun")


def is_get(seen: Seen) -> bool:
    return seen.method == "GET" and "range" in seen.headers


def is_manifest(seen: Seen) -> bool:
    return seen.method == "PUT" and "multipart-manifest=put" in seen.target


def is_sign_in(seen: Seen) -> bool:
    return seen.target.startswith("/auth/")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other quickly: what is tested is that there are several."""
    monkeypatch.setattr(trouble, "MAX_BACKOFF_S", 0.1)


@pytest.fixture
async def proxy(swift_server: SwiftServer) -> AsyncIterator[S3Proxy]:
    async with S3Proxy(swift_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def spec(swift_server: SwiftServer, proxy: S3Proxy) -> StoreSpec:
    return swift_spec(swift_server, url=f"{proxy.endpoint}/auth/v1.0", sockettimeout="3000", connectiontimeout="3000",
                      maxerrorretry="4")


@pytest.fixture
async def store(spec: StoreSpec, swift_server: SwiftServer, proxy: S3Proxy) -> AsyncIterator[SwiftImageStore]:
    store = await SwiftImageStore.open(spec, {"key": swift_server.key})
    for container in (store.container, store.segments):
        await store._make(container, "")
    proxy.clear()
    yield store
    proxy.heal()
    for key in {*await keys(store, spec.prefix), *await store.unfinished(spec.prefix)}:
        await store.delete(key)
    assert await segments(store, spec.prefix) == []
    await store.aclose()


@pytest.fixture
def key(spec: StoreSpec) -> str:
    return f"{spec.prefix}/snapshots/{uuid4()}"


async def segments(store: SwiftImageStore, start: str) -> list[str]:
    return [name async for name, _, _ in store.names(store.segments, segments_of(start))]


async def write(store: SwiftImageStore, key: str, body: bytes) -> None:
    upload = await store.begin(key, part_size=PART)
    await asyncio.gather(*(upload.part(number, body[at : at + PART])
                           for number, at in enumerate(range(0, len(body), PART), 1)))
    await upload.complete(len(body))


async def read(store: SwiftImageStore, key: str, size: int) -> bytes:
    return b"".join(await asyncio.gather(*(store.read(key, at, 2 * PART) for at in range(0, size, 2 * PART))))
