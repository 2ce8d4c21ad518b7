"""The registry: complete, derived from the messages, and forgiving about names."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from api import registry, responses
from api.answers.system import describe
from api.parameters import parse
from api.registry import COMMANDS, ApiCommand, Mode, Type, find
from api.responses.job import plan
from schema import vocabulary
from schema.failure import BadParameter, Failed, Unsupported
from schema.image_store import AddImageStore
from schema.message import Command
from schema.motion import MotionPlan
from schema.snapshot import CreateSnapshot
from schema.template import RegisterTemplate
from schema.volume import CreateVolume

ID = UUID("6f1d1f2e-0f0a-4c2a-9d0e-2f6b7a1c3d4e")


def built(name: str, /, **raw: str) -> Command:
    """The message of a request."""
    command = find(name)
    return command.build(parse(command.parameters, raw).values, ID)


@pytest.mark.parametrize("name", ["createVolume", "CREATEVOLUME", "createVolumeCmd", " createVolume ", "volume.create"])
def test_a_command_is_found_by_its_names(name: str) -> None:
    """CloudStack's name in any case, with Cmd, or the wire name."""
    assert find(name).name == "createVolume"


def test_an_unknown_command_names_the_nearest() -> None:
    """432, with a hint."""
    with pytest.raises(Unsupported, match="did you mean createVolume"):
        find("creatVolume")
    with pytest.raises(Unsupported, match="missing"):
        find("")


def test_every_command_message_can_be_called() -> None:
    """A command that has no API name is one that only Storebus itself sends."""
    messages = {each.TYPE for each in vocabulary().values() if issubclass(each, Command)}
    assert messages - set(registry.BY_TYPE) == {
        "snapshot.backup", "snapshot.delete_copy", "copy.quarantine", "copy.lift_quarantine", "image_store.schedule_scrub",
        "image_store.remove_leftovers", "link.open", "volume.expunge", "volume_copy.drop", "volume.drop_image",
        "snapshot.collapse", "snapshot.sweep_replaced"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_entry_is_whole(command: ApiCommand) -> None:
    """Names unique and lower case, fields real, descriptions there, lists filterable by their own parameters."""
    names = [name for each in command.parameters for name in (each.name, *each.aliases)]
    assert len(names) == len(set(names)) and all(name == name.lower() for name in names)
    assert all(each.description for each in command.parameters) and command.description.endswith(".")
    assert set(command.filters) <= set(names)
    if command.command is not None:
        fields = {each.field for each in command.parameters if each.field}
        assert fields <= set(command.command.model_fields)
        if command.prepare is None:
            assert fields == set(command.command.model_fields)
    if command.mode is Mode.CREATE:
        assert responses.TABLES[command.item] == command.noun
    assert command.item in responses.FIELDS or command.name == "queryAsyncJobResult"
    shown = describe(command)
    assert shown["isasync"] is command.is_async and len(shown["params"]) == len(command.parameters)


def test_parameters_follow_their_fields() -> None:
    """Names without underscores, types and requirements from the annotations."""
    by_name = {each.name: each for each in find("createSnapshot").parameters}
    assert set(by_name) == {"volumeid", "name", "asyncbackup", "tags", "policyid", "account", "domainid", "quiescevm",
                            "locationtype", "zoneids", "customjobid"}
    assert (by_name["volumeid"].type, by_name["volumeid"].required) == (Type.UUID, True)
    assert (by_name["asyncbackup"].type, by_name["asyncbackup"].required) == (Type.BOOLEAN, False)
    template = {each.name: each for each in find("registerTemplate").parameters}
    assert template["format"].choices == ("qcow2", "raw") and template["format"].required


def test_messages_are_built_from_requests() -> None:
    """The whole way from text to message."""
    assert built("createSnapshot", volumeId=str(ID), asyncBackup="true") == CreateSnapshot(
        volume_id=ID, async_backup=True)
    store = built("addImageStore", providerName="S3", storeName="s", **{
        "details[0].key": "bucket", "details[0].value": "b"})
    assert store == AddImageStore(provider="S3", name="s", details={"bucket": "b"})
    template = built("registerTemplate", name="t", url="http://a/b", format="QCOW2", zoneid="-1")
    assert isinstance(template, RegisterTemplate) and template.zone_id is None and template.format == "qcow2"
    volume = built("createVolume", size="3")
    assert isinstance(volume, CreateVolume) and (volume.size, volume.name) == (3, f"volume-{ID}")


def test_add_image_store_s3_is_add_image_store() -> None:
    """Its parameters become the provider's settings."""
    store = built("addImageStoreS3", accesskey="a", secretkey="s", endpoint="http://h", bucket="b", usehttps="FALSE")
    assert store == AddImageStore(provider="s3", name="http://h/b", url="http://h", details={
        "accesskey": "a", "secretkey": "s", "endpoint": "http://h", "bucket": "b", "usehttps": "false"})


@pytest.mark.parametrize(("zones", "zone"), [({"zoneids": str(ID)}, ID), ({"zoneids": "-1"}, None), ({}, None)])
def test_a_template_goes_to_one_zone_or_all(zones: dict[str, str], zone: UUID | None) -> None:
    """CloudStack has two parameters for it."""
    template = built("registerTemplate", name="t", url="http://a/b", format="RAW", **zones)
    assert isinstance(template, RegisterTemplate) and template.zone_id == zone


@pytest.mark.parametrize("zones", [
    {"zoneids": f"-1,{uuid4()}"}, {"zoneids": "here"}, {"zoneid": str(ID), "zoneids": str(ID)}])
def test_odd_zones_of_a_template_are_refused(zones: dict[str, str]) -> None:
    """Naming the parameter."""
    with pytest.raises(BadParameter) as refused:
        built("registerTemplate", name="t", url="http://a/b", format="RAW", **zones)
    assert refused.value.failure.field == "zoneids"


def test_a_bad_value_is_told_in_the_callers_spelling() -> None:
    """What only the message itself refuses."""
    command = find("createSnapshot")
    with pytest.raises(Failed) as refused:
        command.build({"volumeid": "no uuid"}, ID)
    assert refused.value.failure.field == "volumeid"


def test_a_plan_shows_what_list_apis_says() -> None:
    cost = {"bytes": 1, "seconds": 1, "basis": "b"}
    end = {"kind": "store", "name": "s"}
    made = MotionPlan.model_validate({"strategy": "direct", "move": "disk->store", "source": end, "target": end, "agent": "a",
                                      "cost": cost, "reason": "r"})
    assert set(plan("backup", made)) == set(responses.FIELDS["plan"])
