"""The S3 store behind a proxy that misbehaves: what passes is retried, what does not is named, nothing stays behind."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError

from agents.image_stores import s3, s3_copy, s3_upload, trouble
from agents.image_stores.links import make_link, revoke_link
from agents.image_stores.registry import open_store
from agents.image_stores.s3 import S3ImageStore
from schema.failure import Failed, Refused, Unknown, WorkFailed, WorkRetryable
from schema.image import StoreSpec
from tests.contract.image_store import data, keys
from tests.services.s3_fixture import s3_server, s3_spec
from tests.services.s3_proxy import S3Proxy, Seen
from tests.services.seaweedfs import SeaweedFS

__all__ = ["s3_server"]
pytestmark = pytest.mark.needs_s3
MIB = 1 << 20
PART = 5 * MIB


def is_part(seen: Seen) -> bool:
    return seen.method == "PUT" and "partNumber=" in seen.target


def is_get(seen: Seen) -> bool:
    return seen.method == "GET" and "range" in seen.headers


def is_complete(seen: Seen) -> bool:
    return seen.method == "POST" and "uploadId=" in seen.target


def is_create(seen: Seen) -> bool:
    return seen.method == "POST" and "uploads" in seen.target


@pytest.fixture
async def proxy(s3_server: SeaweedFS) -> AsyncIterator[S3Proxy]:
    async with S3Proxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def spec(s3_server: SeaweedFS, proxy: S3Proxy) -> StoreSpec:
    return s3_spec(s3_server, endpoint=proxy.endpoint, sockettimeout="3000", connectiontimeout="3000",
                   maxerrorretry="4")


@pytest.fixture
async def store(spec: StoreSpec, s3_server: SeaweedFS, proxy: S3Proxy) -> AsyncIterator[S3ImageStore]:
    store = await S3ImageStore.open(spec, {"secretkey": s3_server.secret_key})
    await (await store.begin(f"{spec.prefix}/first", part_size=PART)).abort()  # it learns what this store checks
    proxy.clear()
    yield store
    proxy.heal()
    for key in {*await keys(store, spec.prefix), *await store.unfinished(spec.prefix)}:
        await store.delete(key)
    await store.aclose()


@pytest.fixture
def key(spec: StoreSpec) -> str:
    return f"{spec.prefix}/snapshots/{uuid4()}"


async def write(store: S3ImageStore, key: str, body: bytes) -> None:
    upload = await store.begin(key, part_size=PART)
    await asyncio.gather(*(upload.part(number, body[at : at + PART])
                           for number, at in enumerate(range(0, len(body), PART), 1)))
    await upload.complete(len(body))


async def read(store: S3ImageStore, key: str, size: int) -> bytes:
    return b"".join(await asyncio.gather(*(store.read(key, at, PART) for at in range(0, size, PART))))


async def test_parts_told_to_slow_down_are_sent_again(store: S3ImageStore, proxy: S3Proxy, key: str) -> None:
    body = data(3 * PART + 99)
    proxy.fail(4, match=is_part)
    proxy.fail(1, status=500, code="InternalError", match=is_complete)
    await write(store, key, body)
    assert proxy.failed == 5
    assert await read(store, key, len(body)) == body


async def test_connections_cut_mid_part_do_not_matter(store: S3ImageStore, proxy: S3Proxy, key: str) -> None:
    body = data(3 * PART + 99)
    proxy.reset(2, after=MIB, match=is_part)
    proxy.reset(1, after=0, match=is_create)
    proxy.cut_answers(1, match=is_part)
    await write(store, key, body)
    assert proxy.cuts == 4
    assert await read(store, key, len(body)) == body
    assert await store.unfinished(key.rsplit("/", 1)[0]) == []


async def test_an_upload_whose_creation_was_not_answered_is_ended(store: S3ImageStore, proxy: S3Proxy,
                                                                  key: str) -> None:
    proxy.cut_answers(1, match=is_create)
    upload = await store.begin(key, part_size=PART)
    assert proxy.cuts == 1
    assert len(await store.uploads(key)) == 1, "the first one exists on the server and nobody knows its id"
    await upload.abort()
    assert await store.uploads(key) == []


async def test_a_completion_whose_answer_was_lost_is_found_done(store: S3ImageStore, proxy: S3Proxy, key: str) -> None:
    body = data(PART + 5)
    proxy.cut_answers(1, match=is_complete)
    await write(store, key, body)
    assert proxy.cuts == 1
    assert await read(store, key, len(body)) == body


async def test_answers_cut_while_reading_are_asked_for_again(store: S3ImageStore, proxy: S3Proxy, key: str) -> None:
    body = data(2 * PART)
    await write(store, key, body)
    proxy.cut_answers(2, after=100_000, match=is_get)
    proxy.fail(1, match=is_get)
    assert await read(store, key, len(body)) == body
    assert (proxy.cuts, proxy.failed) == (2, 1)


async def test_retries_are_bounded_and_the_failure_says_what_to_do(store: S3ImageStore, proxy: S3Proxy,
                                                                  key: str) -> None:
    upload = await store.begin(key, part_size=PART)
    proxy.clear()
    proxy.fail(1000, match=is_part)
    with pytest.raises(WorkRetryable) as failed:
        await upload.part(1, b"x")
    assert proxy.failed == 5
    assert "slow down" in failed.value.failure.cause
    assert failed.value.failure.remedy
    proxy.heal()
    await upload.abort()
    assert await store.uploads(key) == []


async def test_an_unanswered_write_is_unknown_an_unanswered_part_is_not(store: S3ImageStore, proxy: S3Proxy,
                                                                       key: str) -> None:
    proxy.cut_answers(1000, match=lambda seen: seen.method == "PUT")
    with pytest.raises(Unknown):
        await store.put(key, b"may have happened")
    upload = await store.begin(f"{key}-parts", part_size=PART)
    with pytest.raises(WorkRetryable):
        await upload.part(1, b"invisible in any case")
    proxy.heal()
    await upload.abort()


@pytest.fixture(params=["sha256", "md5"])
def sums(request: pytest.FixtureRequest, store: S3ImageStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which digest the store is taken to check."""
    known = {(store.place.shown, store.bucket): request.param == "sha256"}
    monkeypatch.setattr(s3, "CHECKS", known)
    return str(request.param)


async def test_a_corrupted_answer_is_noticed(store: S3ImageStore, key: str, monkeypatch: pytest.MonkeyPatch, sums: str) -> None:
    """The store acknowledges other bytes than were sent: twice it lies, then it tells the truth."""
    upload = await store.begin(key, part_size=PART)
    real, lies = store.client.upload_part, 2

    async def lying(**arguments: Any) -> Any:
        nonlocal lies
        answer = await real(**arguments)
        if lies:
            lies -= 1
            answer |= {"ETag": '"' + "0" * 32 + '"'} if sums == "md5" else {"ChecksumSHA256": "A" * 43 + "="}
        return answer

    monkeypatch.setattr(store.client, "upload_part", lying)
    await upload.part(1, b"right")
    assert lies == 0
    assert (await upload.complete(5)).size == 5


async def test_bytes_damaged_on_the_way_are_refused_by_the_store(store: S3ImageStore, key: str, monkeypatch: pytest.MonkeyPatch,
                                                                 sums: str) -> None:
    real = s3_upload.Body
    monkeypatch.setattr(s3_upload, "Body", lambda view: real(bytes(len(view))))  # what arrives is not what was hashed
    upload = await store.begin(key, part_size=PART)
    with pytest.raises(WorkRetryable, match="damaged"):
        await upload.part(1, b"right")
    await upload.abort()


async def test_a_digest_of_the_callers_is_what_the_store_checks(store: S3ImageStore, key: str) -> None:
    upload = await store.begin(key, part_size=PART)
    with pytest.raises(WorkRetryable, match="damaged"):
        await upload.part(1, b"right", sha256=hashlib.sha256(b"wrong").hexdigest())
    await upload.part(1, b"right", sha256=hashlib.sha256(b"right").hexdigest())
    assert (await upload.complete(5)).size == 5


@pytest.mark.parametrize("deaf", ["takes a wrong sum", "knows no sums"])
async def test_a_store_that_checks_no_sha256_is_given_md5(store: S3ImageStore, key: str, monkeypatch: pytest.MonkeyPatch, deaf: str) -> None:
    sent: list[dict[str, Any]] = []
    part, create = store.client.upload_part, store.client.create_multipart_upload

    async def takes(**arguments: Any) -> Any:
        sent.append(arguments)
        arguments.pop("ChecksumSHA256", None)
        return await part(**arguments)

    async def knows(**arguments: Any) -> Any:
        if "ChecksumAlgorithm" in arguments:
            raise ClientError({"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}, "CreateMultipartUpload")
        return await create(**arguments)

    monkeypatch.setattr(s3, "CHECKS", {})
    monkeypatch.setattr(store.client, "upload_part", takes)
    if deaf == "knows no sums":
        monkeypatch.setattr(store.client, "create_multipart_upload", knows)
    for _ in range(2):
        upload = await store.begin(key, part_size=PART)
        await upload.part(1, b"right", sha256=hashlib.sha256(b"right").hexdigest())
        assert (await upload.complete(5)).size == 5
    assert [each["ContentMD5"] for each in sent if "ContentMD5" in each] == [base64.b64encode(hashlib.md5(b"right").digest()).decode()] * 2
    assert len(sent) == 2 + (deaf == "takes a wrong sum"), "asked once"
    assert await store.uploads(key) == []


async def test_a_listing_with_more_to_come_and_no_way_to_it_is_an_error(store: S3ImageStore, proxy: S3Proxy, key: str) -> None:
    for number in range(3):
        await store.put(f"{key}-{number}", b"x")
    store.page_size = 2

    def forgetful(head: bytes, body: bytes) -> tuple[bytes, bytes]:
        return head, re.sub(rb"<NextContinuationToken>.*?</NextContinuationToken>", b"", body)

    proxy.alter(1000, forgetful, match=lambda seen: "list-type=2" in seen.target)
    with pytest.raises(WorkFailed, match="never end"):
        await keys(store, key.rsplit("/", 1)[0])
    proxy.heal()
    assert len(await keys(store, key.rsplit("/", 1)[0])) == 3


async def test_a_slow_store_is_waited_for(store: S3ImageStore, proxy: S3Proxy, key: str) -> None:
    """A part that takes longer than the silence allowed, because the link is slow and not silent, goes through."""
    proxy.rate = 1.2 * MIB
    started = time.monotonic()
    await write(store, key, data(PART))
    assert time.monotonic() - started > 3.5, "longer than sockettimeout"
    assert len([seen for seen in proxy.requests if is_part(seen)]) == 1, "sent once"


async def test_a_silent_store_is_given_up(s3_server: SeaweedFS, proxy: S3Proxy, key: str) -> None:
    spec = s3_spec(s3_server, endpoint=proxy.endpoint, sockettimeout="500", maxerrorretry="1")
    store = await S3ImageStore.open(spec, {"secretkey": s3_server.secret_key})
    upload = await store.begin(key, part_size=8 * PART)
    body = bytes(8 * PART)  # more than the kernel's buffers take
    proxy.pause()
    started = time.monotonic()
    for silent in (store.stat(key), upload.part(1, body)):
        with pytest.raises(WorkRetryable, match="fell silent") as failed:
            await silent
        assert failed.value.failure.field == "details.endpoint"
    proxy.resume()
    assert 2 <= time.monotonic() - started < 10
    await upload.abort()
    await store.aclose()


async def test_cancel_stops_the_traffic_and_leaves_nothing(store: S3ImageStore, proxy: S3Proxy, key: str) -> None:
    proxy.rate = 4 * MIB
    upload = await store.begin(key, part_size=PART)
    parts = [asyncio.create_task(upload.part(number, bytes(PART))) for number in range(1, 5)]
    while proxy.bytes_up < MIB:
        await asyncio.sleep(0.02)
    stopped = time.monotonic()
    for part in parts:
        part.cancel()
    await asyncio.gather(*parts, return_exceptions=True)
    await upload.abort()
    await asyncio.sleep(3.0)
    assert proxy.last_byte_at - stopped < 1.0
    assert proxy.bytes_up < 2 * PART, "no more than the proxy had taken already"
    assert await store.uploads(key) == []
    assert await store.stat(key) is None


async def test_an_access_key_without_rights_and_other_refusals_name_the_detail(
        spec: StoreSpec, s3_server: SeaweedFS, proxy: S3Proxy) -> None:
    secret = {"secretkey": s3_server.secret_key}
    wrong: list[tuple[dict[str, str], dict[str, str], str]] = [
        ({}, {"secretkey": "not-" + s3_server.secret_key}, "details.secretkey"),
        ({}, {}, "details.secretkey"),
        ({"accesskey": "nobody"}, secret, "details.accesskey"),
        ({"bucket": "no-such-bucket"}, secret, "details.bucket"),
        ({"bucket": "Not A Bucket"}, secret, "details.bucket"),
        ({"endpoint": s3_server.endpoint.replace("http:", "https:")}, secret, "details.endpoint"),
        ({"endpoint": "http://no-such-host.invalid"}, secret, "details.endpoint"),
        ({"endpoint": "ftp://x"}, secret, "details.endpoint"),
        ({"endpoint": f"http://user:pass@{proxy.endpoint[7:]}"}, secret, "details.endpoint"),
        ({"usehttps": "true"}, secret, "details.usehttps"),
        ({"maxerrorretry": "many"}, secret, "details.maxerrorretry"),
        ({"proxy": "http://a:b@c"}, secret, "details.proxy"),
        ({"cafile": "/nowhere/ca.pem"}, secret, "details.cafile"),
    ]
    for details, secrets, field in wrong:
        bad = spec.model_copy(update={"details": {**spec.details, **details}})
        with pytest.raises(Refused) as refused:
            await S3ImageStore.open(bad, secrets)
        failure = refused.value.failure
        assert failure.field == field, (details, failure)
        assert failure.cause
        text = repr(refused.value) + failure.model_dump_json()
        assert s3_server.secret_key not in text
        assert "pass@" not in text


async def test_a_store_that_is_away_may_come_back(spec: StoreSpec, s3_server: SeaweedFS, proxy: S3Proxy) -> None:
    await proxy.stop()
    with pytest.raises(WorkRetryable) as failed:
        await S3ImageStore.open(spec, {"secretkey": s3_server.secret_key})
    assert failed.value.failure.field == "details.endpoint"
    assert failed.value.failure.remedy


async def test_a_store_that_is_busy_while_it_is_opened_is_asked_again_and_one_that_is_away_is_not(
        spec: StoreSpec, s3_server: SeaweedFS, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets, waits = {"secretkey": s3_server.secret_key}, AsyncMock()
    monkeypatch.setattr(trouble, "back_off", waits)
    proxy.fail(1, status=503, code="SlowDown")
    proxy.fail(1, status=500, code="InternalError")
    proxy.reset(2)  # one is repeated by the client by itself
    await (await S3ImageStore.open(spec, secrets)).aclose()
    assert len(proxy.requests) == 5
    waits.assert_awaited()
    proxy.clear()
    proxy.fail(100, status=503, code="SlowDown")
    with pytest.raises(WorkRetryable, match="slow down"):
        await S3ImageStore.open(spec, secrets)
    assert len(proxy.requests) == 1 + 4, "as often as maxerrorretry says"
    await proxy.stop()
    waits.reset_mock()
    with pytest.raises(WorkRetryable, match="does not take connections"):
        await S3ImageStore.open(spec, secrets)
    waits.assert_not_called()


@pytest.mark.parametrize(("code", "status", "field"), [
    ("AccessDenied", 403, "details.accesskey"), ("RequestTimeTooSkewed", 403, "details.endpoint"),
    ("NoSuchBucket", 404, "details.bucket"), ("QuotaExceeded", 403, "url"),
])
async def test_refusals_in_the_middle_are_final(store: S3ImageStore, proxy: S3Proxy, key: str, code: str, status: int,
                                                field: str) -> None:
    upload = await store.begin(key, part_size=PART)
    proxy.clear()
    proxy.fail(100, status=status, code=code, match=is_part)
    with pytest.raises(WorkFailed) as failed:
        await upload.part(1, b"x")
    assert not failed.value.retryable
    assert failed.value.failure.field == field
    assert proxy.failed == 1, "not tried again"
    proxy.heal()
    await upload.abort()


async def test_a_missing_bucket_is_not_an_absent_object(spec: StoreSpec, s3_server: SeaweedFS, store: S3ImageStore) -> None:
    store.bucket = "bucket-is-gone"
    with pytest.raises(WorkFailed) as failed:
        await store.stat("x")
    assert failed.value.failure.field == "details.bucket"
    store.bucket = s3_server.bucket


@pytest.mark.parametrize(("step", "match"), [
    ("list", lambda seen: seen.method == "GET" and "list-type=2" in seen.target and "probe-" in seen.target),
    ("put", lambda seen: seen.method == "PUT" and "partNumber" not in seen.target),
    ("get", is_get),
    ("multipart", is_part),
    ("multipart", is_complete),
])
async def test_the_step_that_fails_is_named(store: S3ImageStore, proxy: S3Proxy, spec: StoreSpec, step: str,
                                            match: Any) -> None:
    proxy.fail(10_000, status=403, code="AccessDenied", match=match)
    with pytest.raises(Refused, match=f"test step {step}") as refused:
        await store.test(spec.prefix)
    assert refused.value.failure.field == "details.accesskey"
    assert refused.value.failure.remedy
    proxy.heal()
    assert await keys(store, spec.prefix) == []
    assert await store.unfinished(spec.prefix) == []


async def test_the_store_killed_while_writing_is_retryable(s3_server: SeaweedFS) -> None:
    async with S3Proxy(s3_server.endpoint) as proxy:
        spec = s3_spec(s3_server, endpoint=proxy.endpoint, maxerrorretry="1")
        store = await S3ImageStore.open(spec, {"secretkey": s3_server.secret_key})
        upload = await store.begin(f"{spec.prefix}/x", part_size=PART)
        await proxy.stop()
        with pytest.raises(WorkRetryable):
            await upload.part(1, b"x")
        with pytest.raises(Failed):
            await upload.complete(1)
        await store.aclose()
    store = await S3ImageStore.open(s3_spec(s3_server), {"secretkey": s3_server.secret_key})
    await store.delete(f"{spec.prefix}/x")
    await store.aclose()


async def test_no_secret_and_no_signature_in_any_log(spec: StoreSpec, s3_server: SeaweedFS, proxy: S3Proxy, key: str,
                                                     caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store = await open_store(spec, {"secretkey": s3_server.secret_key})
    proxy.fail(1, match=is_part)
    assert isinstance(store, S3ImageStore)
    await write(store, key, b"canary-in-the-body" * 100)
    with pytest.raises(WorkFailed):
        await store.read(f"{key}-absent", 0, 1)
    await store.delete(key)
    await store.aclose()
    assert "slow down" in caplog.text, "our own log is there"
    for forbidden in (s3_server.secret_key, "Signature=", "AWS4", "canary-in-the-body", "Authorization"):
        assert forbidden not in caplog.text


async def test_a_presigned_link_gives_the_object_to_anyone_until_it_ends(store: S3ImageStore, key: str,
                                                                         s3_server: SeaweedFS) -> None:
    import aiohttp

    await store.put(key, b"for a customer")
    url = await store.presign(key, 2)
    assert s3_server.secret_key not in url
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as answer:
            assert (answer.status, await answer.read()) == (200, b"for a customer")
        await asyncio.sleep(3.1)
        async with session.get(url) as answer:
            assert answer.status == 403
    for seconds in (0, 8 * 86400):
        with pytest.raises(WorkFailed):
            await store.presign(key, seconds)


async def test_a_large_object_is_copied_in_parts_by_the_store_and_a_failed_copy_leaves_nothing(
        store: S3ImageStore, key: str, spec: StoreSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size from which on a copy takes several requests is made small: 5 MiB is the least part S3 has."""
    monkeypatch.setattr(s3_copy, "AT_ONCE", 5 << 20)
    body = data((15 << 20) + 7)
    await store.put(key, body)
    pieces: list[str] = []
    store.client.meta.events.register("before-call.s3.UploadPartCopy", lambda params, **_: pieces.append(
        params["headers"]["x-amz-copy-source-range"]))
    link = await make_link(store, spec, key, 60)
    assert sorted(pieces) == sorted(["bytes=0-5242879", "bytes=5242880-10485759", "bytes=10485760-15728639",
                                     "bytes=15728640-15728646"])
    assert await store.read(f"{spec.prefix}/links/{link.id}", 0, len(body)) == body
    await revoke_link(store, spec, link.id)

    def lost(params: object, **_: object) -> None:
        raise ClientError({"Error": {"Code": "PreconditionFailed"}, "ResponseMetadata": {"HTTPStatusCode": 412}}, "UploadPartCopy")

    store.client.meta.events.register("before-call.s3.UploadPartCopy", lost)
    with pytest.raises(WorkFailed, match="changed meanwhile"):
        await make_link(store, spec, key, 60)
    assert await keys(store, spec.prefix) == [key]
    assert list(await store.unfinished(spec.prefix)) == []
