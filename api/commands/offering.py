"""Commands of disk offerings, as `api.registry` collects them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api.api_command import ADMIN, ID, JOB_ID, NAME, ApiCommand, Mode, Type, derived, listing, parameter
from schema.offering import CreateDiskOffering, DeleteDiskOffering, UpdateDiskOffering

TEXTS = {
    "disksize": "size in GiB; left out where it is customized", "customized": "true: whoever makes a volume says its size",
    "tags": "storage tags, comma separated: kept and shown; placement does not go by them",
    "miniops": "least operations a second: kept and shown", "maxiops": "most operations a second: kept and shown",
    "domainid": "the UUIDs of the domains for which it is kept, comma separated; left out: everybody's",
    "provisioningtype": "thin: disks are made thin here", "displayoffering": "false: only root admins see it"}
FIELDS = {"name": "name", "displaytext": "display_text", "disksize": "disk_size", "customized": "customized", "tags": "tags",
          "miniops": "min_iops", "maxiops": "max_iops", "domainid": "domain_ids", "provisioningtype": "provisioning_type",
          "displayoffering": "display_offering"}


def _offering(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    return {FIELDS[name]: value for name, value in values.items() if name in FIELDS}


COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="createDiskOffering", mode=Mode.SYNC, item="diskoffering", noun="disk_offering", command=CreateDiskOffering,
        now=True, roles=ADMIN, prepare=_offering, related="listDiskOfferings",
        parameters=(
            parameter("name", required=True), parameter("displaytext"), parameter("disksize", Type.LONG, text=TEXTS["disksize"]),
            parameter("customized", Type.BOOLEAN, text=TEXTS["customized"]), parameter("tags", text=TEXTS["tags"]),
            parameter("miniops", Type.LONG, text=TEXTS["miniops"]), parameter("maxiops", Type.LONG, text=TEXTS["maxiops"]),
            parameter("domainid", Type.LIST, of_uuids=True, text=TEXTS["domainid"]),
            parameter("provisioningtype", text=TEXTS["provisioningtype"]),
            parameter("displayoffering", Type.BOOLEAN, text=TEXTS["displayoffering"]), JOB_ID),
        description="Offers a size of volumes under a name, or any size."),
    ApiCommand(
        name="listDiskOfferings", mode=Mode.LIST, item="diskoffering", noun="disk_offering",
        parameters=listing(ID, NAME, parameter("domainid", Type.UUID), parameter("listall", Type.BOOLEAN),
                           parameter("isrecursive", Type.BOOLEAN)),
        filters={"id": "id", "name": "name"}, description="Lists the disk offerings that the caller may choose from."),
    ApiCommand(
        name="updateDiskOffering", mode=Mode.SYNC, item="diskoffering", noun="disk_offering", command=UpdateDiskOffering,
        now=True, roles=ADMIN, parameters=derived(UpdateDiskOffering, texts=TEXTS), related="listDiskOfferings",
        description="Renames or retags a disk offering; its size stays."),
    ApiCommand(
        name="deleteDiskOffering", mode=Mode.SYNC, noun="disk_offering", command=DeleteDiskOffering, now=True, roles=ADMIN,
        parameters=derived(DeleteDiskOffering), related="listDiskOfferings",
        description="Offers it no more; volumes that were made by it keep it."),
)
