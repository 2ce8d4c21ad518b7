"""createSnapshot and listSnapshots through the real edge on the system in memory: what is taken in, what is refused, each filter."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from api.responses.snapshot import FIELDS
from schema.agent import TakeSnapshot
from tests.unit.test_snapshot_policies import Planned


async def some() -> tuple[Planned, dict[str, str]]:
    """A cloud with a snapshot by hand, one by a policy that is kept apart by its type, and one that only lies in its disk."""
    planned = await Planned.start()
    named: dict[str, str] = {}
    named["plain"] = (await planned.ok("createSnapshot", volumeid=planned.volume, name="by hand"))["id"]
    await planned.cloud.settle()
    policy = await planned.policy()
    named["daily"] = (await planned.ok("createSnapshot", volumeid=planned.volume, name="for a policy", policyid=policy,
                                       **{"tags[0].key": "k", "tags[0].value": "v"}))["id"]
    await planned.cloud.settle()
    named["early"] = (await planned.ok("createSnapshot", volumeid=planned.volume, name="early", asyncbackup="true"))["id"]
    await planned.cloud.submissions()
    (order,) = await planned.cloud.open_orders()
    await planned.cloud.complete(order)
    return planned, named


@pytest.mark.parametrize(("filters", "found"), [
    ({}, {"plain", "daily", "early"}), ({"name": "by hand"}, {"plain"}), ({"keyword": "HAND"}, {"plain"}),
    ({"snapshottype": "MANUAL"}, {"plain", "early"}), ({"snapshottype": "RECURRING"}, {"daily"}), ({"snapshottype": "daily"}, {"daily"}),
    ({"intervaltype": "DAILY"}, {"daily"}), ({"intervaltype": "HOURLY"}, set()), ({"locationtype": "PRIMARY"}, {"early"}),
    ({"intervaltype": "DAILY", "snapshottype": "MANUAL"}, set()),
    ({"locationtype": "SECONDARY"}, {"plain", "daily"}), ({"tags[0].key": "k", "tags[0].value": "v"}, {"daily"}),
    ({"tags[0].key": "k", "tags[0].value": "w"}, set()), ({"showunique": "true"}, {"plain", "daily", "early"}),
    ({"showunique": "true", "snapshottype": "RECURRING"}, {"daily"}), ({"zoneid": str(uuid4())}, set()),
    ({"volumeid": str(uuid4())}, set()), ({"account": "admin", "domainid": "d22f6067-1c34-59f6-97f7-4dddeaa3982e"}, {"plain", "daily", "early"})])
async def test_each_filter_of_a_list(filters: dict[str, str], found: set[str]) -> None:
    planned, named = await some()
    shown = await planned.snapshots(**filters)
    assert {each["id"] for each in shown} == {named[each] for each in found}
    body = await planned.ok("listSnapshots", **filters)
    assert body.get("count", 0) == len(found)


async def test_ids_and_pages_and_their_counts() -> None:
    planned, named = await some()
    two = await planned.snapshots(ids=f"{named['plain']},{named['early']}")
    assert {each["id"] for each in two} == {named["plain"], named["early"]}
    assert (await planned.ask("listSnapshots", id=named["plain"], ids=named["plain"])).status == 431
    page = await planned.ok("listSnapshots", page=2, pagesize=2)
    assert (page["count"], len(page["snapshot"])) == (3, 1)
    assert await planned.ok("listSnapshots", page=9, pagesize=2) == {"count": 3}
    assert [each["zoneid"] for each in await planned.snapshots(zoneid=planned.cloud.zone_id)] == [str(planned.cloud.zone_id)] * 3


async def test_what_is_shown_of_one() -> None:
    planned, named = await some()
    (plain,) = await planned.snapshots(id=named["plain"])
    assert set(plain) <= set(FIELDS["snapshot"])
    told = {name: plain[name] for name in ("state", "status", "snapshottype", "intervaltype", "locationtype", "revertable", "chainsize",
                                           "physicalsize", "volumename", "datastorename")}
    assert told == {"state": "BackedUp", "status": "Download Complete", "snapshottype": "MANUAL", "intervaltype": "MANUAL",
                    "locationtype": "SECONDARY", "revertable": True, "chainsize": 1000, "physicalsize": 1000, "volumename": "v",
                    "datastorename": "s"}
    assert plain["downloaddetails"] == [{"datastore": "s", "downloadPercent": "100", "downloadState": "DOWNLOADED"}]
    (daily,) = await planned.snapshots(id=named["daily"])
    assert (daily["chainsize"], daily["intervaltype"]) == (2000, "DAILY")
    (early,) = await planned.snapshots(id=named["early"])
    assert (early["state"], early["locationtype"], early["revertable"]) == ("CreatedOnPrimary", "PRIMARY", False)


@pytest.mark.parametrize(("wrong", "said"), [
    ({"quiescevm": "true"}, "quiescevm"), ({"locationtype": "PRIMARY"}, "locationtype"), ({"locationtype": "MOON"}, "locationtype"),
    ({"policyid": str(uuid4())}, "policyid"), ({"account": "nobody"}, "account"), ({"name": "x" * 256}, "name"),
    ({"volumeid": str(uuid4())}, "volume"), ({"tags[0].key": "", "tags[0].value": "v"}, "tags"), ({"asyncbackup": "perhaps"}, "asyncbackup")])
async def test_what_is_wrong_is_named_and_changes_nothing(wrong: dict[str, str], said: str) -> None:
    planned = await Planned.start()
    head = await planned.log.head()
    given: dict[str, Any] = {"volumeid": planned.volume} | wrong
    answer = await planned.ask("createSnapshot", **given)
    assert answer.status in (430, 431) and said in answer.error
    assert await planned.log.head() == head


async def test_the_words_of_cloudstack_that_change_nothing_are_taken() -> None:
    planned = await Planned.start()
    await planned.ok("createSnapshot", volumeid=planned.volume, quiescevm="false", locationtype="SECONDARY", account="admin")
    await planned.cloud.submissions()
    assert [type(order) for order in await planned.cloud.open_orders()] == [TakeSnapshot]
