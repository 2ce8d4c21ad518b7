"""Objects of the Swift store on a real Swift: segments and containers that vanish, manifests of manifests, links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import aiohttp
import pytest
from swiftclient.client import Connection
from swiftclient.exceptions import ClientException

from agents.image_stores.swift import SwiftImageStore
from agents.image_stores.swift_upload import segments_of
from schema.failure import WorkFailed, WorkRetryable
from tests.contract.image_store import data, keys
from tests.services.s3_proxy import S3Proxy
from tests.services.swift import SEGMENTS, SwiftServer
from tests.services.swift_fixture import swift_server, swift_spec
from tests.support.swift_store import (
    PART,
    is_manifest,
    key,
    proxy,
    read,
    segments,
    soon,
    spec,
    store,
    write,
)

__all__ = ["key", "proxy", "soon", "spec", "store", "swift_server"]
pytestmark = pytest.mark.needs_swift

# --- what vanishes ----------------------------------------------------------------------------------------------------------


async def test_a_missing_segment_is_named_and_the_object_can_still_be_deleted(store: SwiftImageStore, key: str) -> None:
    body = data(4 * PART)
    await write(store, key, body)
    lost = (await segments(store, key))[2]
    await store.remove_segment(lost)
    assert await store.read(key, 0, 2 * PART) == body[: 2 * PART]
    for offset, length in ((2 * PART, 10), (PART, 3 * PART), (2 * PART - 1, 2)):
        with pytest.raises(WorkFailed, match="segment") as failed:
            await store.read(key, offset, length)
        assert not failed.value.retryable
    assert await store.read(key, 3 * PART, PART) == body[3 * PART :]
    await store.delete(key)
    assert await store.stat(key) is None
    assert await segments(store, key) == []


async def test_a_segment_that_is_gone_or_changed_is_found_by_the_store_at_the_manifest(store: SwiftImageStore, key: str) -> None:
    upload = await store.begin(key, part_size=PART)
    await asyncio.gather(*(upload.part(number, data(PART, number)) for number in (1, 2)))
    name = next(one for one in await segments(store, key) if one.endswith("2"))
    await store.remove_segment(name)
    with pytest.raises(WorkFailed, match="segments"):
        await upload.complete(2 * PART)
    connection = await store.client.ask("", lambda line, grant: Connection(preauthurl=grant.url, preauthtoken=grant.token))
    await asyncio.to_thread(connection.put_object, store.segments, name, data(PART, 3))
    connection.close()
    with pytest.raises(WorkFailed, match="segments"):
        await upload.complete(2 * PART)
    await upload.part(2, data(PART, 2))
    await upload.complete(2 * PART)
    assert await store.read(key, PART, PART) == data(PART, 2)


async def test_a_container_that_is_gone_is_not_an_absent_object(swift_server: SwiftServer) -> None:
    name = f"gone-{uuid4()}"
    store = await SwiftImageStore.open(swift_spec(swift_server, container=name), {"key": swift_server.key})
    for work in (store.stat("a"), store.read("a", 0, 1), store.put("a", b"x"), store.delete("a"), store.unfinished("a"),
                 store.begin("a", part_size=PART), keys(store, "a")):
        with pytest.raises(WorkFailed) as failed:
            await work  # type: ignore[misc] # coroutines of several results
        assert failed.value.failure.field == "details.container"
        assert "container does not exist" in failed.value.failure.cause
    with pytest.raises(WorkFailed, match=f"the container {name} "):
        await store.begin("a", part_size=PART)
    await store.aclose()


async def test_a_listing_that_lags_is_not_believed(store: SwiftImageStore, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A double of the listing only: it still shows a segment that is gone."""
    real = store.names

    async def lagging(container: str, start: str, *, skip: str = "") -> AsyncIterator[tuple[str, int, str]]:
        async for found in real(container, start, skip=skip):
            yield found
        if start.startswith(".segments/"):
            yield f"{segments_of(key, 'ghost')}000001", PART, ""

    monkeypatch.setattr(store, "names", lagging)
    assert await store.unfinished(key.rsplit("/", 1)[0]) == []
    await store.delete(key)
    upload = await store.begin(key, part_size=PART)
    assert await store.unfinished(key.rsplit("/", 1)[0]) == [key]
    await upload.abort()
    assert await store.unfinished(key.rsplit("/", 1)[0]) == []
    monkeypatch.undo()


async def test_nobody_waits_for_segments_that_no_listing_shows(store: SwiftImageStore, key: str,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A double of the listing only: it shows nothing yet. Abort removes what it knows of all the same."""
    upload = await store.begin(key, part_size=PART)
    await asyncio.gather(*(upload.part(number, data(PART)) for number in (1, 2, 3)))
    there = await segments(store, key)

    async def empty(container: str, start: str, *, skip: str = "") -> AsyncIterator[tuple[str, int, str]]:
        for nothing in ():
            yield nothing

    with monkeypatch.context() as patch:
        patch.setattr(store, "names", empty)
        await upload.abort()
    assert len(there) == 4
    assert not any([await store.has_segment(name) for name in there])


# --- large objects ----------------------------------------------------------------------------------------------------------


async def test_more_parts_than_a_manifest_takes(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    assert store.limits.max_parts == SEGMENTS**2
    count = SEGMENTS + 3
    body = data((count - 1) * PART + 5)
    await write(store, key, body)
    assert len([seen for seen in proxy.requests if is_manifest(seen)]) > 2, "manifests of manifests"
    assert await read(store, key, len(body)) == body
    assert await store.unfinished(key.rsplit("/", 1)[0]) == []
    assert [info.size async for info in store.list(key.rsplit("/", 1)[0])] == [len(body)]
    assert await store._has_all(store.container, key, 0, len(body))
    await store.remove_segment(f"{segments_of(key)}{(await segments(store, key))[20].rsplit('/', 2)[1]}/000020")
    assert not await store._has_all(store.container, key, 0, len(body))
    assert not await store._has_all(store.container, key, 20 * PART - 1, 20 * PART)
    assert await store._has_all(store.container, key, 0, 19 * PART)
    assert await store._has_all(store.container, key, 20 * PART, len(body))
    await store.delete(key)
    assert await segments(store, key) == []


async def test_segments_that_a_resumed_upload_does_not_keep_are_removed(store: SwiftImageStore, key: str) -> None:
    lost = await store.begin(key, part_size=PART)
    await asyncio.gather(*(lost.part(number, data(PART, number)) for number in (1, 2, 5)))
    upload = await store.resume(key, part_size=PART)
    assert upload is not None
    assert set(await upload.parts()) == {1, 2, 5}
    await upload.keep(1, sha256="")
    await upload.part(2, data(7, 9))
    await upload.complete(PART + 7)
    assert await store.read(key, 0, 3 * PART) == data(PART, 1) + data(7, 9)
    assert len(await segments(store, key)) == 2


async def test_what_an_object_replaces_goes(store: SwiftImageStore, key: str) -> None:
    await write(store, key, data(3 * PART))
    await write(store, key, data(2 * PART, 2))
    assert await store.read(key, 0, 2 * PART) == data(2 * PART, 2)
    assert len(await segments(store, key)) == 2
    await store.put(key, b"small")
    assert await store.read(key, 0, 10) == b"small"
    assert await segments(store, key) == []


async def test_what_an_object_replaces_goes_though_it_was_not_listed_at_first(store: SwiftImageStore, key: str,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies beside an object is looked for while it is completed: an error there is no word that nothing does."""
    await write(store, key, data(3 * PART))
    upload = await store.begin(key, part_size=PART)
    await upload.part(1, data(PART, 2))
    listed, asked = store.names, 0

    def names(*where: str, **how: str) -> AsyncIterator[tuple[str, int, str]]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise WorkRetryable("the listing is not there for now")
        return listed(*where, **how)

    monkeypatch.setattr(store, "names", names)
    await upload.complete(PART)
    assert asked > 1
    assert len(await segments(store, key)) == 1


# --- links ------------------------------------------------------------------------------------------------------------------


async def fetch(url: str, **headers: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
        return answer.status, await answer.read()


async def test_links_open_the_object_and_only_it_until_the_second_rotation(swift_server: SwiftServer) -> None:
    prefix = str(uuid4())
    store = await SwiftImageStore.open(swift_spec(swift_server, prefix=prefix, container=f"links-{prefix}"),
                                       {"key": swift_server.key, "tempurlsecret": "the-first-key"})
    await store.test(prefix)
    key, body = f"{prefix}/snapshots/{uuid4()}", data(2 * PART + 3)
    await write(store, key, body)
    first = await store.presign(key, 600)
    assert await fetch(first) == (200, body)
    assert await fetch(first, Range=f"bytes={PART - 5}-{PART + 4}") == (206, body[PART - 5 : PART + 5])
    assert (await fetch(first.replace("temp_url_sig=", "temp_url_sig=0")))[0] == 401
    assert (await fetch(first.replace("/snapshots/", "/others/")))[0] == 401
    with pytest.raises(ClientException):
        await store.client.once(lambda line, grant: Connection(preauthurl=grant.url, preauthtoken="x", retries=0).get_object(
            store.container, key))
    await store.rotate()
    second = await store.presign(key, 600)
    assert [(await fetch(url))[0] for url in (first, second)] == [200, 200]
    await store.rotate()
    assert [(await fetch(url))[0] for url in (first, second, await store.presign(key, 600))] == [401, 200, 200]
    short = await store.presign(key, 1)
    await asyncio.sleep(2.1)
    assert (await fetch(short))[0] == 401
    for seconds in (0, 8 * 86400):
        with pytest.raises(WorkFailed):
            await store.presign(key, seconds)
    for one in await keys(store, prefix):
        await store.delete(one)
    await store.aclose()
