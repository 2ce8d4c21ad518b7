"""Commands of image stores: adding, listing, changing and checking them, as `api.registry` collects them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api.api_command import ADMIN, ID, JOB_ID, ZONE, ApiCommand, Mode, Type, derived, listing, parameter
from schema.backup_provider import ConfigureBackupProvider
from schema.image_store import (
    IMAGE,
    STAGING,
    AddImageStore,
    CreateStagingStore,
    DeleteImageStore,
    DeleteStagingStore,
    UpdateImageStore,
)
from schema.scrub import ScrubStore

STORE_ALIASES = {"provider": ("providername",), "name": ("storename",)}

S3_SETTINGS = (("s3signer", Type.STRING), ("usehttps", Type.BOOLEAN), ("connectiontimeout", Type.INTEGER),
               ("maxerrorretry", Type.INTEGER), ("sockettimeout", Type.INTEGER), ("connectionttl", Type.INTEGER),
               ("usetcpkeepalive", Type.BOOLEAN))


S3_KEYS = ("accesskey", "secretkey", "endpoint", "bucket")


def s3_store(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    """The message of addImageStoreS3 and of its deprecated name."""
    values.pop("customjobid", None)
    details = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}
    return {"provider": "s3", "url": values["endpoint"], "name": f"{values['endpoint']}/{values['bucket']}",
            "details": details}


def _staging_store(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    by_name = {each.name: each.field for each in derived(CreateStagingStore) if each.field}
    return {by_name[name]: value for name, value in values.items() if name in by_name}


COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="addImageStore", since="4.2.0", mode=Mode.SYNC, item="imagestore", noun="image_store", command=AddImageStore,
        roles=ADMIN,
        parameters=derived(AddImageStore, aliases=STORE_ALIASES), related="listImageStores",
        description="Tests an image store step by step and opens it for templates and snapshots."),
    ApiCommand(
        name="addImageStoreS3", since="4.7.0", mode=Mode.SYNC, item="imagestore", noun="image_store", command=AddImageStore,
        roles=ADMIN, prepare=s3_store, related="listImageStores",
        parameters=(*(parameter(name, required=True) for name in S3_KEYS),
                    *(parameter(name, kind) for name, kind in S3_SETTINGS), JOB_ID),
        description="addImageStore for the provider S3, with its settings as parameters."),
    ApiCommand(
        name="listImageStores", since="4.2.0", mode=Mode.LIST, item="imagestore", noun="image_store", roles=ADMIN,
        parameters=listing(ID, parameter("name", aliases=("storename",)), parameter("protocol"),
                           parameter("provider", aliases=("providername",)), ZONE, parameter("readonly", Type.BOOLEAN)),
        filters={"id": "id", "name": "name", "protocol": "protocol", "provider": "provider", "zoneid": "zone_id",
                 "readonly": "read_only"},
        fixed={"role": IMAGE},
        description="Lists image stores."),
    ApiCommand(
        name="updateImageStore", since="4.15.0", mode=Mode.SYNC, item="imagestore", noun="image_store", command=UpdateImageStore,
        roles=ADMIN, now=True, parameters=derived(UpdateImageStore), related="listImageStores",
        description="Renames an image store, makes it read-only, or limits what may rest on it."),
    ApiCommand(
        name="deleteImageStore", since="4.2.0", mode=Mode.SYNC, noun="image_store", command=DeleteImageStore, roles=ADMIN,
        now=True,
        parameters=derived(DeleteImageStore), related="listImageStores",
        description="Deletes an image store on which nothing rests."),
    ApiCommand(
        name="scrubImageStore", mode=Mode.ASYNC, item="scrub", noun="scrub", command=ScrubStore, roles=ADMIN,
        parameters=derived(ScrubStore), related="listImageStores",
        description="Reads a share of an image store's objects again and compares them with what was written (extension)."),
    ApiCommand(
        name="createSecondaryStagingStore", since="4.2.0", mode=Mode.SYNC, item="secondarystorage", noun="image_store",
        command=CreateStagingStore, roles=ADMIN, parameters=(parameter("url", required=True), *(each for each in derived(
            CreateStagingStore, aliases=STORE_ALIASES) if each.name not in ("url", "name"))),
        prepare=_staging_store, related="listSecondaryStagingStores",
        description="Tests a staging store step by step and opens it for what is on its way through its zone."),
    ApiCommand(
        name="listSecondaryStagingStores", since="4.2.0", mode=Mode.LIST, item="imagestore", noun="image_store", roles=ADMIN,
        parameters=listing(ID, parameter("name", aliases=("storename",)), parameter("protocol"),
                           parameter("provider", aliases=("providername",)), ZONE),
        filters={"id": "id", "name": "name", "protocol": "protocol", "provider": "provider", "zoneid": "zone_id"},
        fixed={"role": STAGING}, description="Lists staging stores."),
    ApiCommand(
        name="deleteSecondaryStagingStore", since="4.2.0", mode=Mode.SYNC, noun="image_store",
        command=DeleteStagingStore, roles=ADMIN, now=True,
        parameters=derived(DeleteStagingStore), related="listSecondaryStagingStores",
        description="Deletes a staging store that nobody uses."),
    ApiCommand(
        name="listBackupProviders", mode=Mode.LIST, item="providers", roles=ADMIN,
        parameters=listing(parameter("name", text="the provider's name")),
        description="Lists the providers of image stores to which snapshots can be backed up. In CloudStack this name "
                    "lists plug-ins that back up machines; there are none here."),
    ApiCommand(
        name="configureBackupProvider", mode=Mode.SYNC, noun="backup_provider", command=ConfigureBackupProvider, roles=ADMIN,
        now=True, parameters=derived(ConfigureBackupProvider, aliases={"provider": ("name", "providername")}),
        related="listBackupProviders",
        description="Chooses the provider whose image stores take the backups that come from now on (extension)."),
    ApiCommand(
        name="listStorageProviders", mode=Mode.LIST, item="dataStoreProvider", roles=("A", "R"),
        parameters=listing(parameter("type", required=True, choices=("image", "primary", "ImageCache"))),
        description="Lists the plug-ins that agents carry for image stores or primary stores."),
)
