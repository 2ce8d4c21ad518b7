"""Bad input and lying URLs: a clear error naming field, cause and remedy; nothing half-written, nothing left behind."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from tests.acceptance.conftest import Place
from tests.support.up import Refusal

NOBODY = str(uuid4())

LIES = {
    "nosuch": (431, "404"), "html": (431, "HTML"), "empty": (431, "no bytes"), "gzip": (431, "gzip"), "noise": (431, "format"),
    "backing": (431, "backing"), "datafile": (431, "safe"), "huge": (431, "virtual size"), "unknown": (431, "safe"),
    "redirect-inside": (431, "public"), "redirect-file": (431, "http"), "loop": (431, "redirects"), "encoded": (431, "compressed"),
    "half": (431, "truncated"), "truncated": (530, "truncated"), "broken": (530, "503"),
}
PATIENT = ("truncated", "broken")
"""Those that may pass by: they are tried again for half a minute, so they are told at the same time."""


@pytest.mark.parametrize("lies", [(lie,) for lie in sorted(LIES) if lie not in PATIENT] + [PATIENT], ids=" ".join)
async def test_a_lying_url_is_named_and_leaves_nothing(place: Place, lies: tuple[str, ...]) -> None:
    before = place.objects()
    for lie, (template, job) in zip(lies, await asyncio.gather(*map(place.register, lies)), strict=True):
        code, word = LIES[lie]
        assert job["jobstatus"] == 2, job
        assert job["jobresultcode"] == code, job
        assert word in job["jobresult"]["errortext"], job
        listed = (await place.up.call("listTemplates", templatefilter="all", id=template)).get("template", [])
        assert not listed or not listed[0]["isready"]
    assert place.objects() == before


@pytest.mark.parametrize(("more", "code", "field"), [
    ({"checksum": "{SHA-256}" + "0" * 64}, 431, "checksum"),
    ({"format": "RAW"}, 431, "format"),
])
async def test_a_wrong_declaration_is_named(place: Place, more: dict[str, str], code: int, field: str) -> None:
    before = place.objects()
    _, job = await place.register(**more)
    assert (job["jobstatus"], job["jobresultcode"]) == (2, code)
    assert field in job["jobresult"]["errortext"]
    assert place.objects() == before


@pytest.mark.parametrize(("command", "parameters", "code", "word"), [
    ("registerTemplate", {"name": "t", "url": "http://169.254.169.254/x", "format": "QCOW2", "hypervisor": "KVM", "zoneid": "-1",
                          "displaytext": "x"}, 0, "public"),
    ("registerTemplate", {"name": "t", "url": "http://images.example/x", "format": "QCOW2", "hypervisor": "KVM", "zoneid": "-1",
                          "displaytext": "x", "checksum": "nonsense"}, 431, "checksum"),
    ("createVolume", {"name": "v"}, 431, "size"),
    ("createVolume", {"name": "v", "size": "abc"}, 431, "size"),
    ("createVolume", {"name": "v", "size": "0"}, 431, "size"),
    ("createVolume", {"name": "v", "size": "999999"}, 431, "size"),
    ("createVolume", {"name": "v", "snapshotid": NOBODY}, 431, "zoneid"),
    ("createVolume", {"name": "v\x01", "size": "1"}, 431, "name"),
    ("createVolume", {"name": "v" * 300, "size": "1"}, 431, "name"),
    ("createSnapshot", {}, 431, "volumeid"),
    ("createSnapshot", {"volumeid": NOBODY}, 431, "volumeid"),
    ("createSnapshot", {"volumeid": "not-a-uuid"}, 431, "volumeid"),
    ("deleteVolume", {"id": NOBODY}, 431, "id"),
    ("deleteTemplate", {"id": NOBODY}, 431, "id"),
    ("deleteSnapshot", {"id": NOBODY}, 431, "id"),
    ("deleteImageStore", {"id": NOBODY}, 431, "id"),
    ("cancelJob", {"jobid": NOBODY}, 431, "jobid"),
    ("queryAsyncJobResult", {"jobid": NOBODY}, 431, "jobid"),
    ("addImageStore", {"provider": "nosuch"}, 431, "provider"),
    ("addImageStore", {"provider": "Folder", "url": "folder:///tmp/x"}, 431, "provider"),
    ("explodeEverything", {}, 432, "explodeEverything"),
    ("listVolumes", {"page": "1"}, 431, "page"),
])
async def test_bad_parameters_are_refused_by_name(place: Place, command: str, parameters: dict[str, str], code: int, word: str) -> None:
    before = await place.up.call("listVolumes")
    if code == 0:  # accepted, and refused by the gate before any connection
        answer = await place.up.call(command, **parameters)
        job = await place.up.end(answer["template"][0]["jobid"])
        assert job["jobresultcode"] == 431
        assert word in job["jobresult"]["errortext"]
        return
    with pytest.raises(Refusal) as refused:
        await place.up.call(command, **parameters)
    assert refused.value.code == code, refused.value
    assert word in refused.value.text
    assert await place.up.call("listVolumes") == before


@pytest.mark.parametrize(("more", "word"), [
    ({"secretkey": "wrong-CANARY"}, "secretkey"), ({"bucket": "no-such-bucket-here"}, "bucket"),
    ({"endpoint": "http://127.0.0.1:9"}, "endpoint"), ({"accesskey": "nobody"}, "accesskey"),
])
async def test_a_store_that_does_not_answer_right_is_refused_and_forgotten(place: Place, more: dict[str, str], word: str) -> None:
    with pytest.raises(Refusal) as refused:
        await place.up.add_s3(place.s3, place.bucket, **more)
    assert word in refused.value.text, refused.value
    assert "CANARY" not in refused.value.text
    assert len((await place.up.call("listImageStores"))["imagestore"]) == 1


async def test_a_second_snapshot_of_a_busy_volume_is_refused_at_once(place: Place) -> None:
    volume, _ = await place.up.done("createVolume", name="busy", size=1)
    first = await place.up.call("createSnapshot", volumeid=volume)
    try:  # refused at the door, or by the handler when the first had not begun yet: at once either way
        second = await place.up.call("createSnapshot", volumeid=volume)
        code = (await place.up.end(second["jobid"]))["jobresultcode"]
    except Refusal as refused:
        code = refused.code
    assert code == 431
    assert (await place.up.end(first["jobid"]))["jobstatus"] == 1


async def test_a_store_with_residents_is_not_deleted(place: Place) -> None:
    template, job = await place.register()
    assert job["jobstatus"] == 1, job
    with pytest.raises(Refusal) as refused:
        await place.up.call("deleteImageStore", id=place.store)
    assert refused.value.code == 431 and "reside on the image store" in str(refused.value)
    assert "template" in refused.value.text
    _, gone = await place.up.done("deleteTemplate", id=template)
    assert gone["jobstatus"] == 1


def test_every_lie_was_told(place: Place) -> None:
    told: Any = set(LIES)
    assert len(told) >= 15
