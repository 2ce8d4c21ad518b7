"""listEvents over HTTP: the history of each command, on the whole system in memory."""

from __future__ import annotations

from typing import Any

from tests.support.api import Api


async def test_the_history_is_listed_as_events(cloud: Api) -> None:
    """Each command's chain: Scheduled, Created, Started, Completed; what failed says so; every filter."""
    made = await cloud.ok("createVolume", name="v", size=1)
    await cloud.job(made["jobid"])
    await cloud.ok("deleteVolume", id=made["id"])

    async def events(**given: Any) -> list[dict[str, Any]]:
        found = await cloud.ok("listEvents", **given)
        assert found.get("count", 0) == len(found.get("event", []))
        return list(found.get("event", []))

    chain = await events(resourceid=made["id"], type="VOLUME.CREATE")
    assert [each["state"] for each in chain] == ["Completed", "Started", "Created", "Scheduled"]
    first = chain[-1]
    assert {each.get("parentid") for each in chain} == {first["id"], None} and "parentid" not in first
    assert {(each["level"], each["resourcetype"], each["username"], each["account"], each["domain"]) for each in chain} == {
        ("INFO", "Volume", "admin", "admin", "ROOT")}
    assert await events(startid=first["id"]) == chain and await events(id=chain[1]["id"]) == [chain[1]]
    assert [each["state"] for each in await events(resourceid=made["id"], type="VOLUME.DELETE", state="completed")] == ["Completed"]
    every = await events()
    assert [each["type"] for each in every][-4:] == ["IMAGE.STORE.ADD"] * 4  # the newest comes first
    assert {each["type"] for each in every} <= {each["name"] for each in (await cloud.ok("listEventTypes"))["eventtype"]}
    assert await events(startdate="2999-01-01") == [] and await events(enddate="2020-01-01") == []
    assert await events(startdate="2020-01-01", enddate="2999-01-01") == every
    assert await events(archived="true") == [] and await events(archived="false") == every
    assert len(await events(keyword="volume.create")) + len(await events(keyword="volume.delete")) + 4 == len(every)
    assert (await cloud.ok("listEvents", page=2, pagesize=3))["event"] == every[3:6]
    assert await events(entrytime=60, duration=0) == []  # nothing goes on
    for given, named in (({"entrytime": 5}, "duration"), ({"entrytime": 5, "duration": 5}, "entrytime"),
                         ({"startdate": "2026-01-02", "enddate": "2026-01-01"}, "enddate"), ({"level": "LOUD"}, "level")):
        assert named in (await cloud.refused("listEvents", **given))["errortext"]


async def test_what_failed_is_an_error_in_the_history(api: Api) -> None:
    answer = await api.ok("createVolume", name="v", size=1)
    await api.system.cloud.submissions()
    began = (await api.ok("listEvents", entrytime=60, duration=0))["event"]
    assert [(each["state"], each["jobid"]) for each in began] == [("Started", answer["jobid"])]
    [order] = await api.system.cloud.open_orders()
    await api.system.cloud.fail(order)
    await api.system.cloud.settle()
    assert (await api.job(answer["jobid"]))["jobstatus"] == 2
    [event] = (await api.ok("listEvents", level="error"))["event"]
    assert (event["type"], event["state"], event["resourceid"]) == ("VOLUME.CREATE", "Completed", answer["id"])
    assert "failed: it broke" in event["description"]
    assert (await api.ok("listEvents", keyword="IT BROKE"))["event"] == [event]
