"""HTTP against the whole system in memory: a real listener, the real edge, runtime and projections; agents are played."""

from __future__ import annotations

import io
import socket
from typing import Any
from uuid import UUID, uuid4
from xml.etree import ElementTree

import pytest

from api.listener import HttpListener
from api.request import MAX_BODY
from bus.errors import AppendUnknown
from bus.event_store import LogFilter
from schema.failure import BadParameter
from schema.ids import derive
from schema.message import Command
from tests.support.api import S3, Api


async def test_the_whole_life_of_an_image(cloud: Api) -> None:
    registered = await cloud.ok("registerTemplate", name="debian", displaytext="Debian", url="http://h/d.qcow2",
                                format="QCOW2", hypervisor="KVM", zoneid="-1")
    assert registered["count"] == 1
    [template] = registered["template"]
    assert template["name"] == "debian" and UUID(template["jobid"])
    job = await cloud.job(template["jobid"])
    assert (job["jobstatus"], job["jobresultcode"], job["jobprocstatus"]) == (1, 0, 100)
    assert job["jobresult"]["template"]["status"] == "Download Complete" and job["jobresulttype"] == "object"
    [listed] = (await cloud.ok("listTemplates", templatefilter="executable"))["template"]
    assert listed["isready"] is True and listed["zonename"] == "zone-1" and listed["downloaddetails"]

    created = await cloud.ok("createVolume", name="data", templateId=template["id"])
    assert created["id"] == str(derive(UUID(created["jobid"]), "volume"))
    volume = (await cloud.job(created["jobid"]))["jobresult"]["volume"]
    assert (volume["id"], volume["state"], volume["templatename"]) == (created["id"], "Ready", "debian")
    assert volume["path"] and volume["storage"] == "p" and volume["zonename"] == "zone-1"

    taken = await cloud.ok("createSnapshot", volumeid=created["id"], name="first")
    job = await cloud.job(taken["jobid"])
    snapshot = job["jobresult"]["snapshot"]
    assert (snapshot["id"], snapshot["state"], snapshot["volumename"]) == (taken["id"], "BackedUp", "data")
    assert snapshot["datastorename"] == "objects" and job["cmd"] == "org.apache.cloudstack.api.command.user.snapshot.CreateSnapshotCmd"
    assert (job["jobinstancetype"], job["jobinstanceid"]) == ("Snapshot", taken["id"])

    [zone] = (await cloud.ok("listZones"))["zone"]
    restored = await cloud.ok("createVolume", name="again", snapshotid=taken["id"], zoneid=zone["id"])
    assert (await cloud.job(restored["jobid"]))["jobresult"]["volume"]["snapshotid"] == taken["id"]

    renamed = await cloud.ok("updateVolume", id=restored["id"], name="renamed")
    assert (await cloud.job(renamed["jobid"]))["jobresult"]["volume"]["name"] == "renamed"
    for thing in (created["id"], restored["id"]):
        assert await cloud.ok("deleteVolume", id=thing) == {"success": True}
    for command, thing in (("deleteSnapshot", taken["id"]), ("deleteTemplate", template["id"])):
        job = await cloud.job((await cloud.ok(command, id=thing))["jobid"])
        assert job["jobresult"] == {"success": True}
    assert await cloud.ok("listVolumes") == {} and await cloud.ok("listSnapshots") == {}
    [store] = (await cloud.ok("listImageStores", provider="s3"))["imagestore"]
    assert (await cloud.ok("updateImageStore", id=store["id"], readonly="TRUE"))["imagestore"]["readonly"] is True
    assert await cloud.ok("deleteImageStore", id=store["id"]) == {"success": True}
    assert await cloud.ok("listImageStores") == {}


async def test_an_image_store_shows_no_secret_anywhere(cloud: Api) -> None:
    answer = await cloud.ok("listImageStores")
    [store] = answer["imagestore"]
    assert (store["providername"], store["scope"], store["name"]) == ("S3", "REGION", "objects")
    everything = [row.payload for row in (await cloud.system.store.read_log(0, filter=LogFilter())).rows]
    assert everything and not any(b"canary-7f3d" in payload for payload in everything)
    jobs = await cloud.ok("listAsyncJobs")
    assert "canary-7f3d" not in str(answer) + str(jobs)


async def test_a_refused_command_leaves_nothing(api: Api) -> None:
    before = await api.system.store.head()
    error = await api.refused("addImageStore", **{**S3, "details[3].key": "fancy", "details[3].value": "x"})
    assert error["errorcode"] == 431 and "details.fancy" in error["errortext"]
    assert "canary" not in error["errortext"]
    error = await api.refused("registerTemplate", name="t", url="http://u:canary@h/x", format="RAW")
    assert error["errorcode"] == 531 and "canary" not in error["errortext"]
    assert await api.system.store.head() == before
    assert api.system.cloud.store._secrets == {}


@pytest.mark.parametrize(("command", "parameters", "code", "named"), [
    ("createVolum", {}, 432, "did you mean createVolume"), ("", {}, 432, "command"),
    ("createSnapshot", {}, 431, "volumeid"), ("createSnapshot", {"volumeid": "7"}, 431, "volumeid"),
    ("createSnapshot", {"volumeid": str(uuid4())}, 431, "no volume has the id"),
    ("createVolume", {"name": "v"}, 431, "size"), ("createVolume", {"name": "v", "size": "0"}, 431, "size"),
    ("createVolume", {"name": "v", "size": "ten"}, 431, "size"),
    ("createVolume", {"name": "v", "snapshotid": str(uuid4())}, 431, "zoneid"),
    ("createVolume", {"name": "a" * 256, "size": "1"}, 431, "name"),
    ("createVolume", {"name": "a\x01", "size": "1"}, 431, "name"),
    ("addImageStore", {"provider": "nope"}, 431, "provider"), ("addImageStore", {}, 431, "provider"),
    ("addImageStore", {"provider": "S3", "details[a].key": "x"}, 430, "details[a].key"),
    ("registerTemplate", {"name": "t", "url": "ftp://h/x", "format": "RAW"}, 431, "url"),
    ("registerTemplate", {"name": "t", "url": "http://h/x", "format": "ISO"}, 431, "format"),
    ("deleteImageStore", {"id": str(uuid4())}, 431, "no image store has the id"),
    ("queryAsyncJobResult", {"jobid": str(uuid4())}, 431, "no job has the id"),
    ("cancelJob", {"jobid": str(uuid4())}, 431, "no job has the id"),
    ("listTemplates", {}, 431, "templatefilter"), ("listTemplates", {"templatefilter": "mine"}, 431, "templatefilter"),
    ("listStorageProviders", {}, 431, "type"), ("listStorageProviders", {"type": "tape"}, 431, "type"),
    ("listVolumes", {"page": "1"}, 431, "pagesize"), ("listVolumes", {"pagesize": "5"}, 431, "page"),
    ("listVolumes", {"page": "1", "pagesize": "501"}, 431, "pagesize"),
    ("listVolumes", {"page": "0", "pagesize": "5"}, 431, "page"),
    ("listVolumes", {"id": str(uuid4()), "ids": str(uuid4())}, 431, "ids"),
    ("listApis", {"name": "nope"}, 431, "nope"),
])
async def test_bad_input(api: Api, command: str, parameters: dict[str, str], code: int, named: str) -> None:
    error = await api.refused(command, **parameters)
    assert error["errorcode"] == code
    assert named in error["errortext"]


async def test_errors_have_cloudstacks_envelopes(api: Api) -> None:
    """432 has its own key; other errors have their command's."""
    assert (await api.ask("nope"))[1] == "errorresponse"
    assert (await api.ask("createSnapshot"))[1] == "createsnapshotresponse"
    status, _, error = await api.ask("createSnapshot")
    assert (status, error["cserrorcode"]) == (431, 4350)


async def test_lists_count_page_and_filter(cloud: Api) -> None:
    made = [(await cloud.ok("createVolume", name=f"v{n}", size=1)) for n in range(5)]
    for each in made:
        await cloud.job(each["jobid"])
    whole = await cloud.ok("listVolumes")
    assert whole["count"] == 5 and len(whole["volume"]) == 5 and set(whole) == {"count", "volume"}
    second = await cloud.ok("listVolumes", page=2, pagesize=2)
    assert second["count"] == 5 and [each["name"] for each in second["volume"]] == ["v2", "v3"]
    assert await cloud.ok("listVolumes", page=9, pagesize=2) == {"count": 5}
    assert await cloud.ok("listVolumes", name="nothing") == {}
    assert (await cloud.ok("listVolumes", keyword="V3"))["count"] == 1
    assert (await cloud.ok("listVolumes", pagesize=-1))["count"] == 5
    ids = ",".join(each["id"] for each in made[:2])
    assert (await cloud.ok("listVolumes", ids=ids))["count"] == 2
    [pool] = (await cloud.ok("listStoragePools"))["storagepool"]
    assert (await cloud.ok("listVolumes", storageid=pool["id"], state="Ready"))["count"] == 5
    assert pool["path"] == "/p"
    jobs = await cloud.ok("listAsyncJobs", page=1, pagesize=2)
    assert jobs["count"] == 6 and len(jobs["asyncjobs"]) == 2
    assert (await cloud.ok("listAsyncJobs", startdate="2020-01-01"))["count"] == 6
    assert await cloud.ok("listAsyncJobs", startdate="2999-01-01") == {}
    for word, count in (("CREATEvolume", 5), ("imagestore", 1), ("nothing", 0)):
        assert (await cloud.ok("listAsyncJobs", keyword=word, startdate="2020-01-01 00:00:00")).get("count", 0) == count


async def test_templates_are_listed_by_filter(cloud: Api) -> None:
    for name, more in (("plain", {}), ("star", {"isfeatured": "true", "ispublic": "true"}), ("open", {"ispublic": "true"})):
        answer = await cloud.ok("registerTemplate", name=name, url="http://h/x.raw", format="RAW", zoneid="-1", **more)
        await cloud.job(answer["template"][0]["jobid"])

    async def names(**parameters: str) -> list[str]:
        found = await cloud.ok("listTemplates", **parameters)
        assert found.get("count", 0) == len(found.get("template", []))
        return sorted(each["name"] for each in found.get("template", []))

    assert await names(templatefilter="all") == await names(templatefilter="self") == ["open", "plain", "star"]
    assert await names(templatefilter="featured") == ["star"]
    assert await names(templatefilter="community") == ["open"]
    assert await names(templatefilter="shared") == []
    assert await names(templatefilter="all", isready="false") == []
    assert await names(templatefilter="all", zoneid=str(cloud.system.cloud.zone_id)) == ["open", "plain", "star"]
    assert await names(templatefilter="all", zoneid=str(uuid4())) == []


async def test_the_api_describes_itself(api: Api) -> None:
    every = await api.ok("listApis", listall="true")
    assert every["count"] == len(every["api"]) > 20
    for each in every["api"]:
        assert each["description"] and isinstance(each["isasync"], bool) and each["response"]
        assert all(param["description"] and param["type"] for param in each["params"])
    [one] = (await api.ok("listApis", name="createvolume"))["api"]
    assert one["isasync"] is True and {"jobid", "id"} <= {field["name"] for field in one["response"]}
    capability = (await api.ok("listCapabilities"))["capability"]
    assert capability["kvmsnapshotenabled"] is True and capability["cloudstackversion"] >= "4.19"


async def test_providers_are_those_that_agents_carry(api: Api) -> None:
    image = (await api.ok("listStorageProviders", type="image"))["dataStoreProvider"]
    assert [each["name"] for each in image] == ["Folder", "NFS", "S3", "Swift"]
    assert image[2]["settings"]["required"] == ["bucket"]
    primary = (await api.ok("listStorageProviders", type="PRIMARY"))["dataStoreProvider"]
    assert primary == [{"name": "Memory", "type": "PRIMARY"}]
    staging = (await api.ok("listStorageProviders", type="imagecache"))["dataStoreProvider"]
    assert [(each["name"], each["type"], each["scope"]) for each in staging] == [("NFS", "ImageCache", "ZONE")]


async def test_a_deprecated_command_says_so_in_headers(cloud: Api) -> None:
    """RFC 9745 and RFC 5829, with the answer and with a refusal, in JSON and XML; others say nothing of the kind."""
    for parameters in ({"command": "listS3s"}, {"command": "LISTSWIFT", "response": "json"}, {"command": "addSwift", "response": "json"}):
        async with cloud.http.get(f"{cloud.url}/client/api", params=parameters) as answer:
            use = "addImageStore" if "add" in parameters["command"] else "listImageStores"
            assert answer.headers["Deprecation"] == "@1380585600"
            assert answer.headers["Link"] == f'</client/api?command={use}>; rel="successor-version"'
            assert f"use {use}" in answer.headers["Warning"]
    async with cloud.http.get(f"{cloud.url}/client/api", params={"command": "listImageStores"}) as answer:
        assert not {"Deprecation", "Link", "Warning"} & set(answer.headers)


async def test_progress_and_cancel(api: Api) -> None:
    async with api.system.working():
        await api.ok("addImageStore", **S3)
    answer = await api.ok("registerTemplate", name="t", url="http://h/x.raw", format="RAW", zoneid="-1")
    [template] = answer["template"]
    assert template["status"] == "Processing" and template["isready"] is False  # no handler has taken it up
    cloud = api.system.cloud
    await cloud.submissions()
    [order] = await cloud.open_orders()
    await cloud.store.set_progress(order.work_name,
        b'{"stage":"download","bytes":30,"total":120,"rate":10,"eta":9,"agent":"host-1"}')
    job = await api.ok("queryAsyncJobResult", jobid=template["jobid"])
    assert (job["jobstatus"], job["jobprocstatus"], job["jobresultcode"]) == (0, 25, 0)
    assert job["progress"] == {"stage": "download", "bytes": 30, "total": 120, "rate": 10, "eta": 9}
    assert "jobresult" not in job
    [listed] = (await api.ok("listTemplates", templatefilter="all"))["template"]
    assert (listed["status"], listed["jobid"], listed["jobstatus"]) == ("25% Downloaded", template["jobid"], 0)
    assert await api.ok("cancelJob", jobid=template["jobid"]) == {"success": True}
    for order in await cloud.open_orders():
        await cloud.stop(order)
    await cloud.settle()
    job = await api.job(template["jobid"])
    assert job["jobstatus"] == 2 and job["jobresult"]["errorcode"] == job["jobresultcode"] == 530
    error = await api.refused("cancelJob", jobid=template["jobid"])
    assert error["errorcode"] == 431 and "ended" in error["errortext"]


async def test_an_asynchronous_backup_names_its_job(cloud: Api) -> None:
    created = await cloud.ok("createVolume", name="v", size=1)
    await cloud.job(created["jobid"])
    taken = await cloud.ok("createSnapshot", volumeid=created["id"], asyncbackup="true")
    snapshot = (await cloud.job(taken["jobid"]))["jobresult"]["snapshot"]
    backed_up = (await cloud.job(snapshot["backupjob"]))["jobresult"]["snapshot"]
    assert (backed_up["id"], backed_up["state"]) == (taken["id"], "BackedUp")


async def test_a_failed_job_tells_why(cloud: Api) -> None:
    created = await cloud.ok("createVolume", name="v", size=1)
    await cloud.job(created["jobid"])
    first = await cloud.ok("createSnapshot", volumeid=created["id"])
    second = await cloud.ask("createSnapshot", volumeid=created["id"])
    if second[0] == 200:  # accepted before a handler took the first one up: its job is refused
        job = await cloud.job(second[2]["jobid"])
        if job["jobstatus"] == 2:
            assert job["jobresult"]["errorcode"] == 431
    else:
        assert second[2]["errorcode"] == 431
    assert (await cloud.job(first["jobid"]))["jobstatus"] == 1


async def test_a_synchronous_command_waits_bounded_and_its_job_goes_on(api: Api) -> None:
    api.edge.wait_s = 0.2
    error = await api.refused("addImageStore", **S3)
    assert error["errorcode"] == 530 and "goes on" in error["errortext"]
    job_id = error["errortext"].split("job ")[1].split(" ")[0]
    async with api.system.working():
        job = await api.job(job_id)
    assert job["jobresult"]["imagestore"]["name"] == "objects"


async def test_the_same_job_id_is_the_same_job(cloud: Api) -> None:
    job_id = str(uuid4())
    first = await cloud.ok("createVolume", name="once", size=1, customjobid=job_id)
    assert await cloud.ok("createVolume", name="once", size=1, customjobid=job_id) == first
    assert first["jobid"] == job_id
    await cloud.job(job_id)
    assert await cloud.ok("createVolume", name="once", size=1, customjobid=job_id) == first
    error = await cloud.refused("createVolume", name="twice", size=1, customjobid=job_id)
    assert error["errorcode"] == 431
    assert (await cloud.ok("listVolumes"))["count"] == 1


async def test_an_append_of_unknown_end_is_sent_again(cloud: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, tries = cloud.system.submit, 0

    async def flaky(command: Command, *, job_id: UUID, principal: str = "admin") -> int:
        nonlocal tries
        tries += 1
        position = await submit(command, job_id=job_id, principal=principal)
        if tries == 1:
            raise AppendUnknown("the connection broke")
        return position

    monkeypatch.setattr(cloud.system, "submit", flaky)
    created = await cloud.ok("createVolume", name="v", size=1)
    await cloud.job(created["jobid"])
    assert tries == 2 and (await cloud.ok("listVolumes"))["count"] == 1


async def test_a_database_that_is_away_is_a_clean_503_and_recovers(api: Api) -> None:
    api.system.away = True
    error = await api.refused("listVolumes")
    assert (error["errorcode"], error["cserrorcode"]) == (503, 4380) and "Postgres does not answer" in error["errortext"]
    async with api.http.get(f"{api.url}/readyz") as answer:
        assert answer.status == 503 and (await answer.json())["ready"] is False
    async with api.http.get(f"{api.url}/livez") as answer:
        assert answer.status == 200
    async with api.http.get(f"{api.url}/metrics") as answer:
        assert "storebus_database_up 0.0" in await answer.text()
    api.system.away = False
    assert await api.ok("listVolumes") == {}
    async with api.http.get(f"{api.url}/readyz") as answer:
        assert answer.status == 200


async def test_readiness_asks_this_processs_own_parts(api: Api) -> None:
    wrong = ""
    listener = HttpListener(api.edge, checks={"consumers": lambda: wrong})
    url = await listener.start()
    async with api.http.get(f"{url}/readyz") as answer:
        assert (answer.status, (await answer.json())["checks"]["consumers"]) == (200, "ok")
    wrong = "no consumer"
    async with api.http.get(f"{url}/readyz") as answer:
        assert (answer.status, (await answer.json())["checks"]["consumers"]) == (503, "no consumer")
    await listener.aclose()


async def test_an_unexpected_error_tells_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("canary-secret")

    monkeypatch.setattr(api.system, "rows", broken)
    error = await api.refused("listVolumes")
    assert error["errorcode"] == 530 and "canary" not in error["errortext"]


async def test_get_and_post_and_a_query_with_a_form(api: Api) -> None:
    where = f"{api.url}/client/api"
    async with api.http.get(f"{where}?COMMAND=listZones&Response=JSON") as answer:
        assert (await answer.json())["listzonesresponse"]["count"] == 1
    async with api.http.post(f"{where}?response=json", data={"command": "listZones"}) as answer:
        assert (await answer.json())["listzonesresponse"]["count"] == 1
    for form in ({"command": "listZones"}, {"Command": "listZones"}):  # which one was meant?
        async with api.http.post(f"{where}?command=listZones&response=json", data=form) as answer:
            [body] = (await answer.json()).values()
            assert answer.status == body["errorcode"] == 431 and "given twice" in body["errortext"]


async def test_what_is_not_asked_for_in_json_is_xml(cloud: Api) -> None:
    """CloudStack's default, with the same envelopes: elements for fields, one for each item of a list."""
    async def xml(**parameters: Any) -> tuple[int, ElementTree.Element]:
        async with cloud.http.post(f"{cloud.url}/client/api", data=parameters) as answer:
            assert answer.headers["Content-Type"] == "text/xml; charset=UTF-8"
            text = await answer.text()
            assert "X-Description" in answer.headers or answer.status == 200
            return answer.status, ElementTree.fromstring(text)

    odd = "a<b>&\"é\U0001f600]]>"
    for name in (odd, "second"):
        status, made = await xml(command="createVolume", name=name, size="1")
        assert (status, made.tag) == (200, "createvolumeresponse")
        await cloud.job(made.findtext("jobid", ""))
    status, found = await xml(command="listVolumes")
    assert (status, found.tag, found.get("cloud-stack-version"), found.findtext("count")) == (200, "listvolumesresponse", "4.22.0.0", "2")
    assert [each.findtext("name") for each in found.findall("volume")] == [odd, "second"]
    as_json = await cloud.ok("listVolumes")
    for volume, element in zip(as_json["volume"], found.findall("volume"), strict=True):
        assert {each.tag for each in element} == {key for key, value in volume.items() if value not in ([], None)}
        assert element.findtext("size") == str(volume["size"])
    assert [each.tag for each in (await xml(command="listVolumes", name="nobody"))[1]] == []
    _, providers = await xml(command="listStorageProviders", type="image")
    assert providers.find("dataStoreProvider/settings/properties/bucket/type") is not None
    for command, root, code in (("createSnapshot", "createsnapshotresponse", 431), ("nope", "errorresponse", 432)):
        status, refused = await xml(command=command)
        assert (status, refused.tag, refused.findtext("errorcode")) == (code, root, str(code))
        assert refused.findtext("errortext") and refused.findtext("cserrorcode")


async def test_a_listener_without_identity_has_no_logins(api: Api) -> None:
    for command, given in (("login", {"username": "a", "password": "b"}), ("logout", {})):
        status, key, error = await api.ask(command, **given)
        assert (status, key) == (432, "errorresponse") and "identity" in error["errortext"]


async def test_a_command_may_be_named_in_the_path(api: Api) -> None:
    async with api.http.get(f"{api.url}/client/api/listZones?response=json") as answer:
        assert (await answer.json())["listzonesresponse"]["count"] == 1
    async with api.http.get(f"{api.url}/client/api/listZones?Command=listZones&response=json") as answer:
        assert answer.status == 431
    async with api.http.get(f"{api.url}/openapi.json") as answer:
        assert "/client/api/listZones" in (await answer.json())["paths"]


async def test_metrics_count_requests(api: Api) -> None:
    await api.ok("listZones")
    await api.refused("canary")
    async with api.http.get(f"{api.url}/metrics") as answer:
        text = await answer.text()
    assert 'storebus_api_requests_total{code="200",command="listZones"} 1.0' in text
    assert 'command="unknown"' in text and "canary" not in text
    assert "storebus_log_head" in text and "storebus_held_keys 0.0" in text


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 200), ({"Host": "localhost:1"}, 200), ({"Host": "[::1]:8096"}, 200), ({"Host": "127.0.0.2"}, 200),
    ({"Host": "evil.example"}, 403), ({"Host": "storebus"}, 403), ({"Host": "169.254.169.254"}, 403),
    ({"Host": "localhost.evil.example"}, 403), ({"Host": "[::"}, 403),
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-origin"}, 200), ({"Sec-Fetch-Site": "none"}, 200),
])
async def test_a_web_page_elsewhere_cannot_reach_it(api: Api, headers: dict[str, str], status: int) -> None:
    for page in ("/client/api?command=listZones", "/metrics", "/readyz"):
        async with api.http.get(api.url + page, headers=headers) as answer:
            assert answer.status == status


async def test_the_same_origin_may(api: Api) -> None:
    async with api.http.get(f"{api.url}/livez", headers={"Origin": api.url}) as answer:
        assert answer.status == 200


async def test_odd_requests_are_refused_cleanly(api: Api) -> None:
    where = f"{api.url}/client/api"

    async def code(request: Any) -> int:
        async with request as answer:
            body = await answer.json()
            assert body["errorresponse"]["errorcode"] == answer.status
            return int(answer.status)

    assert await code(api.http.get(f"{api.url}/nope")) == 404
    where += "?response=json"
    assert await code(api.http.put(where)) == 405
    assert await code(api.http.post(where, json={"command": "listZones"})) == 430
    assert await code(api.http.post(where, data=io.BytesIO(b"a=" + b"x" * MAX_BODY), headers={
        "Content-Type": "application/x-www-form-urlencoded"})) == 413
    assert await code(api.http.post(where, data={f"p{n}": "1" for n in range(101)})) == 431
    assert await code(api.http.post(where, data={f"p{n}": "1" for n in range(5000)})) == 431
    assert await code(api.http.post(where, data=b"command=%ff%fe", headers={
        "Content-Type": "application/x-www-form-urlencoded"})) == 430
    assert (await api.ok("listZones"))["count"] == 1


async def test_a_port_that_is_taken_is_named(api: Api) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BadParameter, match="api_port"):
        await HttpListener(api.edge, port=taken.getsockname()[1]).start()
