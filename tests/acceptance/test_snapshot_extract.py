"""Extracting snapshots through the whole product, on S3: what the URL gives is a whole image, by qemu-img's judgement, also of a
delta; once it is revoked it gives nothing, and the bucket holds what it held."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from agents.qemu import run
from api.verify import verify_all
from tests.acceptance.conftest import Place
from tests.acceptance.test_chains import Chain

pytestmark = pytest.mark.needs_qemu


@pytest.fixture
async def chain(place: Place, tmp_path: Path, seed: int) -> Chain:
    made = Chain(place, tmp_path, random.Random(seed))
    await made.create()
    return made


async def test_the_url_of_any_link_gives_a_whole_image(chain: Chain) -> None:
    up, made = chain.place.up, []
    for _ in range(3):
        made.append(await chain.snapshot())
        await chain.write()
    held = chain.place.objects()
    for number, snapshot in enumerate(made):
        answer = await up.call("extractSnapshot", id=snapshot, zoneid=chain.place.zone, mode="HTTP_DOWNLOAD")
        job = await up.end(answer["jobid"])
        assert job["jobstatus"] == 1, job
        given = job["jobresult"]["snapshot"]
        assert (given["id"], given["state"]) == (snapshot, "DOWNLOAD_URL_CREATED")
        file = chain.folder / f"extracted{number}.qcow2"
        with urlopen(given["url"]) as response:
            file.write_bytes(response.read())
        said = await run("qemu-img", "info", "-f", "qcow2", str(file))
        assert "backing" not in said and "No errors" in await run("qemu-img", "check", "-f", "qcow2", str(file))
        assert await chain.sum(file) == chain.sums[snapshot]
        ended = await up.end((await up.call("revokeExtractUrl", extractid=answer["jobid"]))["jobid"])
        assert ended["jobstatus"] == 1, ended
        for _ in range(500):
            if chain.place.objects() == held:
                break
            await asyncio.sleep(0.1)
        with pytest.raises(HTTPError):
            urlopen(given["url"]).close()
        assert "url" not in (await up.call("queryAsyncJobResult", jobid=answer["jobid"]))["jobresult"]["snapshot"]
    assert chain.place.objects() == held
    for snapshot in list(chain.sums):
        await chain.delete(snapshot)
    await up.call("deleteVolume", id=chain.volume)
    assert await verify_all(up.dsn) == []
