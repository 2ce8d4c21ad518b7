"""Templates in several zones, decided through the real runtime, asked for in CloudStack's words."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from schema.agent import CreateDisk, DeleteImages, DropSnapshot, FetchImage, MergeImages, TakeSnapshot, WriteSnapshot
from schema.failure import Damage
from schema.scrub import QuarantineCopy
from tests.support.two_zones import TwoZones

READY = (True, "Download Complete")


async def test_a_zones_own_stores_get_a_copy_each_of_one_download() -> None:
    scene = await TwoZones.start()
    template, job = await scene.register(zoneids=f"{scene.here},{scene.other}")
    await scene.cloud.submissions()
    assert await scene.rows() == {str(scene.here): (False, "Processing"), str(scene.other): (False, "Processing")}
    [fetch] = [order for order in await scene.cloud.open_orders() if isinstance(order, FetchImage)]
    await scene.cloud.complete(fetch)
    await scene.cloud.submissions()
    assert (await scene.rows())[str(scene.here)] == READY, "each zone by its own copy"
    assert not (await scene.rows())[str(scene.other)][0]
    assert (await scene.ended(job))["jobstatus"] == 1
    assert await scene.rows() == {str(scene.here): READY, str(scene.other): READY}
    assert len(await scene.orders(FetchImage)) == 1
    [copy] = await scene.orders(MergeImages)
    assert (copy.source.id, copy.store.id, copy.agent) == (*scene.stores, "host-1")
    [whole] = (await scene.ok("listTemplates", templatefilter="all", showunique="true"))["template"]
    assert len(whole["downloaddetails"]) == 2 and not whole["crossZones"]
    await scene.ok("createVolume", name="v", templateid=template, zoneid=scene.other)
    await scene.cloud.settle()
    [disk] = await scene.orders(CreateDisk)
    assert disk.store.id == scene.stores[1], "a volume reads its own zone's copy"


async def test_everything_is_counted_and_given_back() -> None:
    scene = await TwoZones.start()
    before = await scene.counters()
    template, job = await scene.register(zoneid=-1)
    await scene.ended(job)
    counted = await scene.counters()
    for store in scene.stores:
        assert (counted[f"image_store/{store}/residents"], counted[f"image_store/{store}/used"]) == (1, 1000)
        assert f"image_store/{store}/reserved" not in counted
    deleted = (await scene.ok("deleteTemplate", id=template))["jobid"]
    await scene.cloud.submissions()
    assert (await scene.ok("listTemplates", templatefilter="all")) == {}, "unregistered at once"
    pending = (await scene.ok("listPendingDeletions"))["pendingdeletion"]
    assert {each["datastoreid"] for each in pending} == {str(store) for store in scene.stores}
    assert (await scene.ended(deleted))["jobstatus"] == 1
    assert await scene.ok("listPendingDeletions") == {}
    assert {order.store.id for order in await scene.orders(DeleteImages)} == set(scene.stores)
    assert await scene.counters() == before
    [gone] = (await scene.ok("listTemplates", templatefilter="all", showremoved="true", showunique="true"))["template"]
    assert gone["id"] == template and gone["removed"]


async def test_a_regions_store_serves_all_zones_with_one_object_and_a_copy_is_no_request() -> None:
    scene = await TwoZones.start("s3")
    template, job = await scene.register(zoneid=scene.here)
    await scene.ended(job)
    assert set(await scene.rows()) == {str(scene.here)}
    before = len(await scene.cloud.orders())
    copied = (await scene.ok("copyTemplate", id=template, sourcezoneid=scene.here, destzoneid=scene.other))["jobid"]
    done = await scene.ended(copied)
    assert (done["jobstatus"], done["jobresult"]["template"]["copied"]) == (1, 0)
    assert len(await scene.cloud.orders()) == before, "no agent is asked for anything"
    assert await scene.rows() == {str(scene.here): READY, str(scene.other): READY}
    again = (await scene.ok("copyTemplate", id=template, destzoneids=scene.other))["jobid"]
    assert (await scene.ended(again))["jobstatus"] == 1
    await scene.ended((await scene.ok("deleteTemplate", id=template, zoneid=scene.here))["jobid"])
    assert set(await scene.rows()) == {str(scene.other)}
    assert await scene.orders(DeleteImages) == [], "the other zone still needs the object"
    await scene.ended((await scene.ok("deleteTemplate", id=template, zoneid=scene.other))["jobid"])
    assert len(await scene.orders(DeleteImages)) == 1


async def test_a_template_of_every_zone_can_leave_one() -> None:
    scene = await TwoZones.start("s3")
    template, job = await scene.register()
    await scene.ended(job)
    assert set(await scene.rows()) == {str(scene.here), str(scene.other)}
    await scene.ended((await scene.ok("deleteTemplate", id=template, zoneid=scene.other))["jobid"])
    assert set(await scene.rows()) == {str(scene.here)}
    assert (await scene.ask("deleteTemplate", id=template, zoneid=scene.other)).status == 431


async def test_a_copy_that_fails_fails_and_says_where_it_is() -> None:
    scene = await TwoZones.start()
    template, job = await scene.register(zoneid=scene.here)
    await scene.ended(job)
    counters = await scene.counters()
    copying = (await scene.ok("copyTemplate", id=template, destzoneid=scene.other))["jobid"]
    await scene.cloud.submissions()
    assert (await scene.ask("copyTemplate", id=template, destzoneid=scene.other)).status == 536, "it is on its way"
    assert (await scene.ask("deleteTemplate", id=template)).status in (431, 536), "it is being read"
    [order] = [each for each in await scene.cloud.open_orders() if isinstance(each, MergeImages)]
    await scene.cloud.fail(order)
    failed = await scene.ended(copying)
    assert failed["jobstatus"] == 2 and "zone-2: it is not" in failed["jobresult"]["errortext"]
    assert (await scene.rows())[str(scene.other)] == (False, "it broke (zone-2: it is not)")
    assert await scene.counters() == counters
    again = (await scene.ok("copyTemplate", id=template, destzoneid=scene.other))["jobid"]
    assert (await scene.ended(again))["jobstatus"] == 1
    assert (await scene.rows())[str(scene.other)] == READY


async def test_one_zone_loses_its_copy_and_the_other_keeps_its_own() -> None:
    scene = await TwoZones.start()
    template, job = await scene.register(zoneid=-1)
    await scene.ended(job)
    await scene.ended((await scene.ok("deleteTemplate", id=template, zoneid=scene.here))["jobid"])
    assert await scene.rows() == {str(scene.other): READY}
    assert f"image_store/{scene.stores[0]}/used" not in await scene.counters()
    volume = await scene.ask("createVolume", name="v", templateid=template, zoneid=scene.here)
    assert volume.status == 431 and "templateid" in volume.error
    back = (await scene.ok("copyTemplate", id=template, destzoneid=scene.here))["jobid"]
    assert (await scene.ended(back))["jobstatus"] == 1
    assert await scene.rows() == {str(scene.here): READY, str(scene.other): READY}


async def test_a_quarantined_copy_stops_its_own_zone_only() -> None:
    scene = await TwoZones.start()
    template, job = await scene.register(zoneids=f"{scene.here},{scene.other}")
    await scene.ended(job)
    [fetch] = await scene.orders(FetchImage)
    await scene.cloud.send(QuarantineCopy(kind="template", thing_id=UUID(template), damage=Damage(object=fetch.key, what="missing")))
    rows = await scene.rows()
    assert not rows[str(scene.here)][0] and rows[str(scene.here)][1].startswith("Quarantined") and rows[str(scene.other)] == READY
    refused = await scene.ask("createVolume", name="v", templateid=template, zoneid=scene.here)
    assert refused.status == 431 and "quarantined" in refused.error
    await scene.ok("createVolume", name="v", templateid=template, zoneid=scene.other)


@pytest.mark.parametrize(("more", "field"), [
    ({"url": "http://x/y.vhd"}, "format"), ({"url": "http://x/y.qcow2", "format": "raw"}, "format"), ({"url": "http://x/y.qcow2.gz"}, "url"),
    ({"hypervisor": "VMware"}, "hypervisor"), ({"hypervisor": "Nothing"}, "hypervisor"), ({"checksum": "{MD5}00"}, "checksum"),
    ({"checksum": "xyz"}, "checksum"), ({"url": "file:///etc/passwd"}, "url"), ({"bits": 16}, "bits"), ({"directdownload": "true"}, "directdownload"),
    ({"zoneid": uuid4()}, "zoneid"), ({"zoneids": f"{uuid4()},{uuid4()}"}, "zoneid"), ({"name": "n" * 256}, "name"),
    ({"templatetype": "NONE"}, "templatetype"), ({"format": "iso"}, "format"), ({"ostypeid": uuid4()}, "ostypeid"), ({"ostypeid": "Linux"}, "ostypeid"),
])
async def test_what_cannot_be_is_refused_at_the_door(more: dict[str, object], field: str) -> None:
    scene = await TwoZones.start("s3")
    head = await scene.system.store.head()
    answer = await scene.ask("registerTemplate", **({"name": "t", "url": "http://x/y", "format": "qcow2", "hypervisor": "KVM"} | more))
    assert answer.status == 431 and answer.error.startswith(f"{field}:"), answer
    assert await scene.system.store.head() == head


async def test_an_os_type_is_one_of_the_list() -> None:
    busy = await Busy.start()
    scene, unknown = busy.scene, uuid4()
    known = (await scene.ok("listOsTypes", description="Debian GNU/Linux 12 (64-bit)"))["ostype"][0]["id"]
    template, job = await scene.register(ostypeid=known.upper())
    assert (await scene.ended(job))["jobstatus"] == 1
    for command, more in (("registerIso", {"name": "i", "url": "http://x/i.iso", "zoneid": -1}), ("updateTemplate", {"id": template}),
                          ("createTemplate", {"name": "c", "volumeid": busy.volume})):
        refused = await scene.ask(command, ostypeid=unknown, **more)
        assert refused.status == 431 and refused.error.startswith("ostypeid:"), (command, refused)
    [row] = (await scene.ok("listTemplates", templatefilter="self", id=template, showunique="true"))["template"]
    assert row["ostypename"] == "Debian GNU/Linux 12 (64-bit)"


async def test_what_it_says_about_itself_is_kept_shown_and_changed() -> None:
    scene = await TwoZones.start("s3")
    template, job = await scene.register(**{
        "bits": 32, "passwordenabled": "true", "sshkeyenabled": "true", "requireshvm": "false", "isdynamicallyscalable": "true",
        "details[0].key": "rootDiskController", "details[0].value": "virtio", "templatetag": "gpu", "arch": "aarch64", "isfeatured": "true",
        "checksum": "{SHA-256}" + "ab" * 32, "displaytext": "text"})
    await scene.ended(job)
    shown = (await scene.ok("listTemplates", templatefilter="self", id=template))["template"][0]
    assert {name: shown[name] for name in ("bits", "passwordenabled", "sshkeyenabled", "requireshvm", "isdynamicallyscalable", "details",
                                           "templatetag", "arch", "isfeatured", "displaytext", "templatetype")} == {
        "bits": 32, "passwordenabled": True, "sshkeyenabled": True, "requireshvm": False, "isdynamicallyscalable": True,
        "details": {"rootDiskController": "virtio"}, "templatetag": "gpu", "arch": "aarch64", "isfeatured": True, "displaytext": "text",
        "templatetype": "USER"}
    changed = await scene.ok("updateTemplate", id=template, name="new", sortkey=7, isrouting="true", cleanupdetails="true", format="QCOW2")
    assert (changed["template"]["name"], changed["template"]["sortkey"], changed["template"]["templatetype"],
            changed["template"]["details"], changed["template"]["displaytext"]) == ("new", 7, "ROUTING", {}, "text")
    assert (await scene.ask("updateTemplate", id=template, format="raw")).status == 431
    assert (await scene.ask("updateTemplate", id=uuid4(), name="x")).status == 431
    few = (await scene.ok("listTemplates", templatefilter="self", details="min"))["template"][0]
    assert few["name"] == "new" and "bits" not in few


async def test_filters_are_the_databases_and_pages_follow_one_another() -> None:
    scene = await TwoZones.start("s3")
    made = [(await scene.register(name=f"n{number}", zoneid=scene.here))[0] for number in range(5)]
    await scene.cloud.settle()
    found = []
    for page in (1, 2, 3, 4):
        answer = await scene.ok("listTemplates", templatefilter="self", page=page, pagesize=2)
        assert answer["count"] == 5
        found += [row["id"] for row in answer.get("template", [])]
    assert sorted(found) == sorted(made)
    for filters, count in (({"keyword": "n1"}, 1), ({"ids": f"{made[0]},{made[1]}"}, 2), ({"zoneid": scene.other}, 0), ({"zoneid": scene.here}, 5),
                           ({"isready": "false"}, 0), ({"isready": "true"}, 5), ({"hypervisor": "KVM"}, 5), ({"arch": "s390x"}, 0),
                           ({"zoneid": scene.here, "showunique": "true"}, 5), ({"zoneid": scene.other, "showunique": "true"}, 0)):
        assert len((await scene.ok("listTemplates", templatefilter="self", **filters)).get("template", [])) == count, filters
    assert (await scene.ask("listTemplates", templatefilter="self", id=made[0], ids=made[0])).status == 431


class Busy:
    """A volume in the first zone, and what a job on it left."""

    def __init__(self, scene: TwoZones, volume: str) -> None:
        self.scene, self.volume = scene, volume

    @classmethod
    async def start(cls, provider: str = "s3") -> Busy:
        scene = await TwoZones.start(provider)
        made = await scene.ok("createVolume", name="v", size=1, zoneid=scene.here)
        await scene.cloud.settle()
        return cls(scene, made["id"])

    async def create(self, **more: object) -> tuple[str, str]:
        answer = await self.scene.ok("createTemplate", **({"name": "made", "volumeid": self.volume} | more))
        return answer["id"], answer["jobid"]


async def test_a_template_of_a_volume_is_whole_and_leaves_the_volume_as_it_was() -> None:
    busy = await Busy.start()
    scene = busy.scene
    taken = await scene.ok("createSnapshot", volumeid=busy.volume)
    await scene.cloud.settle()
    template, job = await busy.create(passwordenabled="true")
    await scene.cloud.submissions()
    assert (await scene.ask("createSnapshot", volumeid=busy.volume)).status == 431
    assert not (await scene.rows())[str(scene.here)][0]
    assert (await scene.ended(job))["jobstatus"] == 1
    write = (await scene.orders(WriteSnapshot))[-1]
    assert write.parent is None and str(write.thing_id) == template and f"/template/{template}/" in write.key
    drop = (await scene.orders(DropSnapshot))[-1]
    assert (drop.tag, drop.keep) == (write.tag, None), "what the disk records for its snapshots stays"
    assert set(await scene.rows(id=template)) == {str(scene.here), str(scene.other)}
    [shown] = (await scene.ok("listTemplates", templatefilter="self", id=template, showunique="true"))["template"]
    assert (shown["isready"], shown["passwordenabled"], shown["format"]) == (True, True, "QCOW2")
    again = await scene.ok("createSnapshot", volumeid=busy.volume)
    await scene.cloud.settle()
    assert (await scene.orders(WriteSnapshot))[-1].parent is not None, "the chain goes on"
    for command, thing in (("deleteSnapshot", again["id"]), ("deleteSnapshot", taken["id"]), ("deleteTemplate", template)):
        assert (await scene.ended((await scene.ok(command, id=thing))["jobid"]))["jobstatus"] == 1
    counters = await scene.counters()
    assert not [name for name in counters if "image_store" in name or "readers" in name], counters


@pytest.mark.parametrize("failing", [TakeSnapshot, WriteSnapshot])
async def test_a_template_of_a_volume_that_fails_leaves_nothing(failing: type) -> None:
    busy = await Busy.start()
    scene = busy.scene
    before = await scene.counters()
    template, job = await busy.create()
    while True:
        await scene.cloud.submissions()
        [order] = await scene.cloud.open_orders()
        if isinstance(order, failing):
            break
        await scene.cloud.complete(order)
    await scene.cloud.fail(order)
    assert (await scene.ended(job))["jobstatus"] == 2
    assert await scene.counters() == before
    assert (await scene.rows())[str(scene.here)] == (False, "it broke")
    assert len(await scene.orders(DropSnapshot)) == (0 if failing is TakeSnapshot else 1)
    await scene.ok("createSnapshot", volumeid=busy.volume)
    assert (await scene.ended((await scene.ok("deleteTemplate", id=template))["jobid"]))["jobstatus"] == 1


async def test_a_template_of_a_volume_that_is_cancelled_late_takes_its_object_back() -> None:
    busy = await Busy.start()
    scene = busy.scene
    before = await scene.counters()
    _, job = await busy.create()
    while True:
        await scene.cloud.submissions()
        [order] = await scene.cloud.open_orders()
        if isinstance(order, DropSnapshot):
            break
        await scene.cloud.complete(order)
    await scene.ok("cancelJob", jobid=job)
    assert (await scene.ended(job))["jobstate"] == "cancelled"
    assert len(await scene.orders(DeleteImages)) == 1
    assert await scene.counters() == before


async def test_a_template_of_a_snapshot_is_its_chain_as_one_object() -> None:
    busy = await Busy.start()
    scene = busy.scene
    snapshots = []
    for _ in range(2):
        snapshots.append((await scene.ok("createSnapshot", volumeid=busy.volume))["id"])
        await scene.cloud.settle()
    template, job = await busy.create(volumeid="", snapshotid=snapshots[1])
    await scene.cloud.submissions()
    early = (await scene.ok("deleteSnapshot", id=snapshots[1]))["jobid"]
    await scene.cloud.submissions()
    assert (await scene.ok("queryAsyncJobResult", jobid=early))["jobstatus"] == 2, "it is being read"
    assert (await scene.ended(job))["jobstatus"] == 1
    [merge] = await scene.orders(MergeImages)
    assert (len(merge.links), merge.parent, merge.source, str(merge.thing_id)) == (2, None, None, template)
    assert (await scene.rows(id=template))[str(scene.here)] == READY
    for snapshot in reversed(snapshots):
        await scene.ended((await scene.ok("deleteSnapshot", id=snapshot))["jobid"])


@pytest.mark.parametrize(("more", "field"), [
    ({"volumeid": ""}, "volumeid"), ({"snapshotid": uuid4()}, "volumeid"), ({"volumeid": uuid4()}, "volumeid"),
    ({"volumeid": "", "snapshotid": uuid4()}, "snapshotid"), ({"name": "n" * 256}, "name"), ({"zoneid": "other"}, "zoneid")])
async def test_what_no_template_is_made_of(more: dict[str, object], field: str) -> None:
    busy = await Busy.start()
    given = {name: busy.scene.other if value == "other" else value for name, value in more.items()}
    answer = await busy.scene.ask("createTemplate", **({"name": "made", "volumeid": busy.volume} | given))
    assert answer.status == 431 and answer.error.startswith(f"{field}:"), answer
