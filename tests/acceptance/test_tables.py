"""The tables of stores on S3: each with its row of a real flow, and no secret in any of them."""

from __future__ import annotations

from tests.acceptance.conftest import Place


async def test_each_table_has_its_row_and_no_secret(place: Place) -> None:
    up, secret = place.up, place.s3.secret_key
    template, job = await place.register()
    assert job["jobstatus"] == 1, job
    volume, _ = await up.done("createVolume", name="v", size=1)
    snapshot, job = await up.done("createSnapshot", volumeid=volume)
    assert job["jobstatus"] == 1, job

    [store] = [row for row in await up.table("image_store") if row["state"] == "Ready"]
    assert store in await up.table("image_data_store") and store["id"] == place.store
    details = {row["name"]: row for row in await up.table("image_store_details") if row["store_id"] == place.store}
    assert set(details) == {"accesskey", "secretkey", "endpoint", "bucket"}
    assert (details["secretkey"]["value"], details["secretkey"]["display"]) == (None, False)
    assert (details["bucket"]["value"], details["bucket"]["display"]) == (place.bucket, True)
    [ref] = await up.table("template_store_ref")
    [copy] = await up.table("snapshot_store_ref")
    assert (ref["template_id"], ref["store_id"]) == (template, place.store)
    assert (copy["snapshot_id"], copy["store_id"]) == (snapshot, place.store)

    more = (await up.call("addS3", accesskey=place.s3.access_key, secretkey=secret, endpoint=place.s3.endpoint, bucket=place.bucket))["imagestore"]
    assert (more["providername"], more["scope"]) == ("S3", "REGION")
    assert {each["id"] for each in (await up.call("listS3s"))["imagestore"]} == {place.store, more["id"]}
    assert {row["id"] for row in await up.table("s3")} == {place.store, more["id"]}
    assert await up.call("deleteImageStore", id=more["id"]) == {"success": True}

    [old] = await up.table("s3")
    assert (old["id"], old["access_key"], old["bucket"], old["end_point"]) == (
        place.store, place.s3.access_key, place.bucket, place.s3.endpoint)
    assert "secret_key" not in old
    [old] = await up.table("template_s3_ref")
    assert (old["s3_id"], old["template_id"], old["physical_size"]) == (place.store, template, ref["physical_size"])
    for other in ("swift", "template_swift_ref", "template_host_ref"):
        assert await up.table(other) == []
    shown = [row for name in ("image_store", "image_store_details", "s3", "template_store_ref", "job") for row in await up.table(name)]
    assert secret and secret not in str(shown)
