"""The Swift store on a real Swift: behind a proxy that misbehaves, with tokens that expire, segments and containers that vanish."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from swiftclient.client import Connection
from swiftclient.exceptions import ClientException

from agents.image_stores import swift_client
from agents.image_stores.swift import SwiftImageStore
from agents.image_stores.swift_client import Line
from agents.image_stores.swift_upload import segments_of
from schema.failure import Failed, Refused, Unknown, WorkFailed, WorkRetryable
from schema.image import StoreSpec
from tests.contract.image_store import data, keys
from tests.services.s3_proxy import S3Proxy, Seen
from tests.services.swift import SwiftServer
from tests.services.swift_fixture import swift_server, swift_spec
from tests.services.swift_processes import SEGMENTS
from tests.support.keystone import DEFAULT, OTHER, keystone
from tests.support.tls import behind_tls, certificate

__all__ = ["swift_server"]
pytestmark = pytest.mark.needs_swift
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
    monkeypatch.setattr(swift_client, "MAX_BACKOFF_S", 0.1)


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


# --- the network, and a busy store ------------------------------------------------------------------------------------------


async def test_parts_told_to_slow_down_are_sent_again(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    body = data(3 * PART + 99)
    proxy.fail(2, status=503, match=is_part)
    proxy.fail(2, status=498, match=is_part)
    proxy.fail(1, status=500, match=is_manifest)
    await write(store, key, body)
    assert proxy.failed == 5
    assert await read(store, key, len(body)) == body


async def test_connections_cut_mid_segment_do_not_matter(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    body = data(3 * PART + 99)
    proxy.reset(2, after=PART // 2, match=is_part)
    proxy.cut_answers(1, match=is_part)
    proxy.cut_answers(1, match=is_manifest)
    await write(store, key, body)
    assert proxy.cuts == 4
    assert await read(store, key, len(body)) == body
    assert await store.unfinished(key.rsplit("/", 1)[0]) == []
    assert len(await segments(store, key)) == 4, "one for each part, no mark"


async def test_a_manifest_whose_answers_were_lost_is_found_done(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    body = data(PART + 5)
    proxy.cut_answers(1000, match=is_manifest)
    await write(store, key, body)
    assert proxy.cuts == 5
    assert await read(store, key, len(body)) == body


async def test_after_a_cut_answer_only_the_rest_is_asked_for(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    body = data(2 * PART)
    await write(store, key, body)
    proxy.clear()
    proxy.cut_answers(1, after=600_000, match=is_get)
    proxy.fail(1, match=is_get)
    assert await store.read(key, 0, 2 * PART) == body
    assert (proxy.cuts, proxy.failed) == (1, 1)
    starts = [int(seen.headers["range"][6:].split("-")[0]) for seen in proxy.requests if is_get(seen)]
    assert starts[0] == 0 < starts[1] == starts[2] < 2 * PART


async def test_retries_are_bounded_and_the_failure_says_what_to_do(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    upload = await store.begin(key, part_size=PART)
    proxy.clear()
    proxy.fail(1000, status=429, match=is_part)
    with pytest.raises(WorkRetryable) as failed:
        await upload.part(1, b"x")
    assert proxy.failed == 5
    assert "slow down" in failed.value.failure.cause
    assert failed.value.failure.remedy
    proxy.heal()
    await upload.abort()


async def test_an_unanswered_write_is_unknown_an_unanswered_part_is_not(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    upload = await store.begin(f"{key}-parts", part_size=PART)
    proxy.cut_answers(1000, match=lambda seen: seen.method == "PUT")
    with pytest.raises(Unknown):
        await store.put(key, b"may have happened")
    with pytest.raises(WorkRetryable):
        await upload.part(1, b"invisible in any case")
    proxy.heal()
    await upload.abort()


async def test_bytes_damaged_on_the_way_are_refused_by_the_store(store: SwiftImageStore, key: str,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await store.begin(key, part_size=PART)
    real = Line.body
    monkeypatch.setattr(Line, "body", lambda line, view: real(line, bytes(len(view))))  # what arrives is not what was hashed
    with pytest.raises(WorkRetryable, match="damaged"):
        await upload.part(1, b"right")
    await upload.abort()


async def test_an_etag_of_other_bytes_is_noticed(store: SwiftImageStore, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import agents.image_stores.swift_upload as module

    upload = await store.begin(key, part_size=PART)
    real, lies = module.put_object, 2

    def lying(*arguments: Any, **named: Any) -> Any:
        nonlocal lies
        answer = real(*arguments, **named)
        if lies:
            lies -= 1
            return "0" * 32
        return answer

    monkeypatch.setattr(module, "put_object", lying)
    await upload.part(1, b"right")
    assert lies == 0
    assert (await upload.complete(5)).size == 5


async def test_a_slow_store_is_waited_for_a_silent_one_is_given_up(swift_server: SwiftServer, proxy: S3Proxy, key: str) -> None:
    spec = swift_spec(swift_server, url=f"{proxy.endpoint}/auth/v1.0", sockettimeout="700", maxerrorretry="1", prefix=key)
    store = await SwiftImageStore.open(spec, {"key": swift_server.key})
    upload = await store.begin(f"{key}/slow", part_size=PART)
    proxy.clear()
    proxy.rate = 0.7 * MIB
    started = time.monotonic()
    await upload.part(1, data(PART))
    assert time.monotonic() - started > 1.2, "longer than sockettimeout"
    assert len([seen for seen in proxy.requests if is_part(seen)]) == 1, "sent once"
    proxy.rate = None
    proxy.pause()
    started = time.monotonic()
    with pytest.raises(WorkRetryable, match="silent"):
        await upload.part(2, data(PART))
    assert time.monotonic() - started < 6
    proxy.heal()
    await upload.abort()
    await store.aclose()


async def test_a_cancelled_request_ends_now_though_the_store_hangs(swift_server: SwiftServer, proxy: S3Proxy, key: str) -> None:
    spec = swift_spec(swift_server, url=f"{proxy.endpoint}/auth/v1.0", sockettimeout="60000", prefix=key)
    store = await SwiftImageStore.open(spec, {"key": swift_server.key})
    await store.put(f"{key}/small", b"x")
    upload = await store.begin(f"{key}/image", part_size=8 * MIB)
    proxy.pause()
    tasks = [asyncio.create_task(upload.part(1, data(8 * MIB))), asyncio.create_task(store.read(f"{key}/small", 0, 1))]
    await asyncio.sleep(0.3)
    started = time.monotonic()
    for task in tasks:
        task.cancel()
    assert all(isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*tasks, return_exceptions=True))
    assert time.monotonic() - started < 1
    proxy.heal()
    await upload.abort()
    await store.delete(f"{key}/small")
    assert await segments(store, key) == []
    await store.aclose()


async def test_where_nothing_answers_it_says_so(swift_server: SwiftServer) -> None:
    for url, error, field in (("http://127.0.0.1:1/auth/v1.0", WorkRetryable, "url"),
                              ("https://127.0.0.1:" + swift_server.endpoint.rsplit(":", 1)[1] + "/auth/v1.0", Refused, "url"),
                              (f"{swift_server.endpoint}/nowhere", Refused, "url"),
                              ("http://no-such-host.invalid/auth/v1.0", Failed, "url")):
        with pytest.raises(error) as failed:
            await SwiftImageStore.open(swift_spec(swift_server, url=url, connectiontimeout="1000"), {"key": "k"})
        assert failed.value.failure.field == field
        assert failed.value.failure.remedy


# --- tokens -----------------------------------------------------------------------------------------------------------------


async def test_a_token_that_ends_in_the_middle_of_a_transfer_is_renewed_once(store: SwiftImageStore, swift_server: SwiftServer,
                                                                              proxy: S3Proxy, key: str) -> None:
    body = data(6 * PART + 7)
    upload = await store.begin(key, part_size=PART)
    await upload.part(1, body[:PART])
    await asyncio.to_thread(swift_server.forget_tokens)
    await asyncio.gather(*(upload.part(number, body[at : at + PART])
                           for number, at in enumerate(range(PART, len(body), PART), 2)))
    assert len([seen for seen in proxy.requests if is_sign_in(seen)]) == 1, "all parts share the new one"
    await asyncio.to_thread(swift_server.forget_tokens)
    await upload.complete(len(body))
    await asyncio.to_thread(swift_server.forget_tokens)
    assert await read(store, key, len(body)) == body


async def test_tokens_that_are_never_taken_are_not_asked_for_for_ever(store: SwiftImageStore, proxy: S3Proxy, key: str) -> None:
    proxy.fail(1000, status=401, match=lambda seen: seen.method == "PUT")
    with pytest.raises(WorkFailed) as failed:
        await store.put(key, b"x")
    assert failed.value.failure.field == "details.username"
    assert len([seen for seen in proxy.requests if is_sign_in(seen)]) <= 2


async def test_a_key_that_was_changed_meanwhile_is_named(store: SwiftImageStore, swift_server: SwiftServer, proxy: S3Proxy,
                                                         key: str) -> None:
    proxy.fail(1, status=401, match=is_sign_in)
    swift_server.forget_tokens()
    with pytest.raises(WorkFailed) as failed:
        await store.put(key, b"x")
    assert failed.value.failure.field == "details.key"


async def test_who_may_not_is_refused_and_no_secret_is_shown(swift_server: SwiftServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for details, secret, field in (({}, "wrong-CANARY", "details.key"), ({"username": "nobody"}, "k-CANARY", "details.key"),
                                   ({"username": "reader"}, "reading", "details.username")):
        with pytest.raises(Refused) as refused:
            store = await SwiftImageStore.open(swift_spec(swift_server, **details), {"key": secret})
            try:
                await store.test("prefix")
            finally:
                await store.aclose()
        assert refused.value.failure.field == field
        assert refused.value.failure.remedy
        assert secret not in str(refused.value)
    assert "CANARY" not in caplog.text and "X-Auth-Key" not in caplog.text


async def test_an_unknown_policy_and_another_policy_are_refused(swift_server: SwiftServer) -> None:
    for details in ({"storagepolicy": "tin", "container": "fresh"}, {"storagepolicy": "tin"}):
        store = await SwiftImageStore.open(swift_spec(swift_server, **details), {"key": swift_server.key})
        await store.client.ask("make", lambda line, grant: Connection(
            preauthurl=grant.url, preauthtoken=grant.token).put_container("images"))
        with pytest.raises(Refused) as refused:
            await store.test("prefix")
        assert refused.value.failure.field == "details.storagepolicy"
        await store.aclose()
    store = await SwiftImageStore.open(swift_spec(swift_server, storagepolicy="Gold"), {"key": swift_server.key})
    await store.test("prefix")
    await store.aclose()


async def test_keystone_by_a_double(swift_server: SwiftServer, key: str) -> None:
    async with keystone(swift_server) as double:
        spec = swift_spec(swift_server, url=double.url, prefix=key, projectdomain=OTHER, userdomain=DEFAULT, region="north")
        store = await SwiftImageStore.open(spec, {"key": swift_server.key})
        await store.test(key)
        await asyncio.to_thread(swift_server.forget_tokens)
        await store.put(f"{key}/x", b"after a renewal")
        assert len(double.questions) == 2
        await store.delete(f"{key}/x")
        await store.aclose()
        for details, field in (({"projectdomain": DEFAULT}, "details.key"), ({"region": "west"}, "details.region"),
                               ({"endpointtype": "admin"}, "details.region")):
            other = spec.model_copy(update={"details": spec.details | details})
            with pytest.raises(Refused) as refused:
                await SwiftImageStore.open(other, {"key": swift_server.key})
            assert refused.value.failure.field == field


async def test_tls_is_verified_and_a_token_never_leaves_it(swift_server: SwiftServer, key: str, tmp_path: Path) -> None:
    authority, server = await asyncio.to_thread(certificate, tmp_path)
    async with keystone(swift_server) as double, behind_tls(swift_server.endpoint, server) as safe, \
            behind_tls(double.url, server) as entry:
        double.storage = f"{safe}/v1/AUTH_{swift_server.account}"
        spec = swift_spec(swift_server, url=f"{entry}/v3", prefix=key, projectdomain=OTHER, region="north")
        for details in ({"cafile": str(authority)}, {"insecure": "true"}):
            store = await SwiftImageStore.open(spec.model_copy(update={"details": spec.details | details}), {"key": swift_server.key})
            await store.test(key)
            await store.aclose()
        with pytest.raises(Refused, match="not trusted") as refused:
            await SwiftImageStore.open(spec, {"key": swift_server.key})
        assert (refused.value.failure.field, "cafile" in refused.value.failure.remedy) == ("url", True)
        trusting = spec.model_copy(update={"details": spec.details | {"cafile": str(authority)}})
        double.storage = ""  # Swift's own address, without TLS
        with pytest.raises(Refused, match="without"):
            await SwiftImageStore.open(trusting, {"key": swift_server.key})


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
