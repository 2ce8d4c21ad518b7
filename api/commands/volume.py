"""Commands of volumes, as `api.registry` collects them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from api.api_command import DETAILS, ID, IDS, NAME, OWNER, TAGS, ZONE, ApiCommand, Mode, Type, derived, listing, parameter
from api.commands.extract import EXTRACT
from schema.identity import Role
from schema.volume import CreateVolume, DeleteVolume, DestroyVolume, RecoverVolume, ResizeVolume, UpdateVolume
from schema.volume_copy import ExtractVolume
from schema.volume_upload import PlaceVolume, UploadVolume

UPLOAD = tuple(replace(each, name="imagestoreuuid" if each.name == "imagestoreid" else each.name)
               for each in derived(UploadVolume, texts={
                   "imagestoreid": "the UUID of the image store in which it is to rest", "adopt": "set by the role"})
               if each.name != "adopt")


def _upload(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    fields = {each.name: each.field for each in UPLOAD if each.field}
    found = {fields[name]: value for name, value in values.items() if name in fields}
    return {**found, "adopt": values["role"] is Role.ADMIN}


TEXTS = {"deleteprotection": "true: it is neither destroyed nor deleted",
         "shrinkok": "true: it may become smaller, where what is cut off holds nothing",
         "expunge": "true: delete it at once, for ever",
         "customid": "nothing but the volume's own id: ids are for ever"}


def _volume(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    values.setdefault("name", f"volume-{job_id}")
    by_name = {each.name: each.field for each in derived(CreateVolume) if each.field}
    if "diskofferingid" in values:
        values["diskofferingid"] = str(values["diskofferingid"])
    return {by_name[name]: value for name, value in values.items() if name in by_name}


CREATE = tuple(replace(each, type=Type.UUID) if each.name == "diskofferingid" else each
               for each in derived(CreateVolume, optional=("name",)))
"""The offering's id is text in the message, which is older than offerings."""

COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="createVolume", mode=Mode.CREATE, item="volume", noun="volume", command=CreateVolume, prepare=_volume,
        parameters=(*CREATE, *OWNER), for_account=True, related="listVolumes",
        description="Makes a volume, at once: empty (by a disk offering, a size), from a snapshot or a template (extension)."),
    ApiCommand(
        name="listVolumes", mode=Mode.LIST, item="volume", noun="volume",
        parameters=listing(ID, IDS, NAME, ZONE, parameter("storageid", Type.UUID), parameter("state"),
                           parameter("type", choices=("ROOT", "DATADISK")), parameter("diskofferingid", Type.UUID),
                           parameter("virtualmachineid", Type.UUID, text="the UUID of the machine that they are attached to"),
                           parameter("displayvolume", Type.BOOLEAN), parameter("retrieveonlyresourcecount", Type.BOOLEAN, text=
                                     "true: only the count"), TAGS, DETAILS, access=True),
        filters={"id": "id", "name": "name", "zoneid": "zone_id", "storageid": "primary_id", "state": "state",
                 "type": "type", "diskofferingid": "disk_offering_id", "virtualmachineid": "machine_id",
                 "displayvolume": "display"},
        description="Lists volumes."),
    ApiCommand(
        name="updateVolume", mode=Mode.ASYNC, item="volume", noun="volume", command=UpdateVolume, now=True,
        parameters=derived(UpdateVolume, texts=TEXTS), related="listVolumes",
        description="Renames a volume, protects it from deletion, shows or hides it."),
    ApiCommand(
        name="uploadVolume", mode=Mode.CREATE, item="volume", noun="volume", command=UploadVolume, prepare=_upload,
        for_account=True, parameters=(*UPLOAD, *OWNER), related="listVolumes",
        description="Takes an image in as a volume: for root admins an object of a registered image store (s3://bucket/key, "
                    "swift://container/key, nfs://host/path, the store's own endpoint) where it lies; any other http(s) URL is "
                    "fetched."),
    ApiCommand(
        name="placeVolume", mode=Mode.ASYNC, item="volume", noun="volume", command=PlaceVolume, parameters=derived(PlaceVolume),
        related="listVolumes",
        description="Brings an uploaded volume to a primary store: before that it is not attached (extension)."),
    ApiCommand(
        name="extractVolume", mode=Mode.ASYNC, item="volume", noun="volume", command=ExtractVolume,
        parameters=derived(ExtractVolume, texts=EXTRACT | {"zoneid": "the UUID of the volume's zone"}),
        related="revokeExtractUrl",
        description="Copies a volume at rest into its zone's image store and gives a URL by which anyone may get the copy. "
                    "It goes when the URL ends or is revoked (revokeExtractUrl)."),
    ApiCommand(
        name="resizeVolume", mode=Mode.ASYNC, item="volume", noun="volume", command=ResizeVolume,
        parameters=derived(ResizeVolume, texts=TEXTS), related="listVolumes",
        description="Gives a volume at rest another size, another disk offering, or both."),
    ApiCommand(
        name="deleteVolume", mode=Mode.SYNC, noun="volume", command=DeleteVolume, parameters=derived(DeleteVolume),
        related="listVolumes", description="Deletes a volume and its bytes, destroyed or not."),
    ApiCommand(
        name="destroyVolume", mode=Mode.ASYNC, item="volume", noun="volume", command=DestroyVolume,
        parameters=derived(DestroyVolume, texts=TEXTS), related="listVolumes",
        description="Destroys a volume: until its time has come (STOREBUS_VOLUME_EXPUNGE_DELAY_S) it can be recovered."),
    ApiCommand(
        name="recoverVolume", mode=Mode.SYNC, item="volume", noun="volume", command=RecoverVolume, now=True,
        parameters=derived(RecoverVolume), related="listVolumes", description="Makes a destroyed volume Ready again."),
)
