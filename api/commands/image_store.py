"""Commands of image stores: adding, listing, changing and checking them, as `api.registry` collects them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api.api_command import ADMIN, ID, JOB_ID, ZONE, ApiCommand, Mode, Type, derived, listing, parameter
from schema.image_store import AddImageStore, DeleteImageStore, UpdateImageStore
from schema.scrub import ScrubStore

STORE_ALIASES = {"provider": ("providername",), "name": ("storename",)}

S3_SETTINGS = (("s3signer", Type.STRING), ("usehttps", Type.BOOLEAN), ("connectiontimeout", Type.INTEGER),
               ("maxerrorretry", Type.INTEGER), ("sockettimeout", Type.INTEGER), ("connectionttl", Type.INTEGER),
               ("usetcpkeepalive", Type.BOOLEAN))


def _s3_store(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    values.pop("customjobid", None)
    details = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}
    return {"provider": "s3", "url": values["endpoint"], "name": f"{values['endpoint']}/{values['bucket']}",
            "details": details}


COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="addImageStore", mode=Mode.SYNC, item="imagestore", noun="image_store", command=AddImageStore, roles=ADMIN,
        parameters=derived(AddImageStore, aliases=STORE_ALIASES), related="listImageStores",
        description="Tests an image store step by step and opens it for templates and snapshots."),
    ApiCommand(
        name="addImageStoreS3", mode=Mode.SYNC, item="imagestore", noun="image_store", command=AddImageStore,
        roles=ADMIN, prepare=_s3_store, related="listImageStores",
        parameters=(*(parameter(name, required=True) for name in ("accesskey", "secretkey", "endpoint", "bucket")),
                    *(parameter(name, kind) for name, kind in S3_SETTINGS), JOB_ID),
        description="addImageStore for the provider S3, with its settings as parameters."),
    ApiCommand(
        name="listImageStores", mode=Mode.LIST, item="imagestore", noun="image_store", roles=ADMIN,
        parameters=listing(ID, parameter("name", aliases=("storename",)), parameter("protocol"),
                           parameter("provider", aliases=("providername",)), ZONE, parameter("readonly", Type.BOOLEAN)),
        filters={"id": "id", "name": "name", "protocol": "protocol", "provider": "provider", "zoneid": "zone_id",
                 "readonly": "read_only"},
        description="Lists image stores."),
    ApiCommand(
        name="updateImageStore", mode=Mode.SYNC, item="imagestore", noun="image_store", command=UpdateImageStore,
        roles=ADMIN, now=True, parameters=derived(UpdateImageStore), related="listImageStores",
        description="Renames an image store, makes it read-only, or limits what may rest on it."),
    ApiCommand(
        name="deleteImageStore", mode=Mode.SYNC, noun="image_store", command=DeleteImageStore, roles=ADMIN, now=True,
        parameters=derived(DeleteImageStore), related="listImageStores",
        description="Deletes an image store on which nothing rests."),
    ApiCommand(
        name="scrubImageStore", mode=Mode.ASYNC, item="scrub", noun="scrub", command=ScrubStore, roles=ADMIN,
        parameters=derived(ScrubStore), related="listImageStores",
        description="Reads a share of an image store's objects again and compares them with what was written (extension)."),
    ApiCommand(
        name="listStorageProviders", mode=Mode.LIST, item="dataStoreProvider", roles=("A", "R"),
        parameters=listing(parameter("type", required=True, choices=("image", "primary"))),
        description="Lists the plug-ins that agents carry for image stores or primary stores."),
)
