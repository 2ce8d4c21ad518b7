"""Deprecated commands of image stores: CloudStack 4.1's names for what addImageStore and listImageStores do, as `api.registry`
collects them. They make and list ordinary image stores and answer with them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api.api_command import ADMIN, ID, JOB_ID, ApiCommand, Mode, Type, listing, parameter
from api.commands.image_store import S3_KEYS, S3_SETTINGS, s3_store
from schema.image_store import IMAGE, AddImageStore

SWIFT = {"account": "the Swift account", "username": "the user that signs in", "key": "the user's key; it is kept in the vault"}


def _secondary_storage(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    zone = {"zone_id": values["zoneid"]} if "zoneid" in values else {}
    return {"provider": "nfs", "url": values["url"], **zone}


def _swift(values: dict[str, Any], job_id: UUID) -> dict[str, Any]:
    return {"provider": "swift", "url": values["url"], "details": {name: values[name] for name in SWIFT if name in values}}


def _listing(name: str, provider: str) -> ApiCommand:
    return ApiCommand(
        name=name, mode=Mode.LIST, item="imagestore", noun="image_store", roles=ADMIN,
        parameters=listing(ID), filters={"id": "id"},
        fixed={"provider": provider, "role": IMAGE}, deprecated="listImageStores",
        description=f"Lists image stores of the provider {provider.upper() if provider == 's3' else 'Swift'}. "
                    "Deprecated: use listImageStores.")


COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="addSecondaryStorage", mode=Mode.SYNC, item="secondarystorage", noun="image_store", command=AddImageStore,
        roles=ADMIN, parameters=(parameter("url", required=True), parameter("zoneid", Type.UUID), JOB_ID),
        prepare=_secondary_storage,
        related="listImageStores", deprecated="addImageStore",
        description="Adds an NFS image store. Deprecated: use addImageStore."),
    ApiCommand(
        name="addSwift", mode=Mode.SYNC, item="secondarystorage", noun="image_store", command=AddImageStore, roles=ADMIN,
        parameters=(parameter("url", required=True), *(parameter(name, text=text) for name, text in SWIFT.items()), JOB_ID),
        prepare=_swift, related="listImageStores", deprecated="addImageStore",
        description="Adds a Swift image store. Deprecated: use addImageStore."),
    ApiCommand(
        name="addS3", mode=Mode.SYNC, item="imagestore", noun="image_store", command=AddImageStore, roles=ADMIN, prepare=s3_store,
        parameters=(*(parameter(name, required=True) for name in S3_KEYS),
                    *(parameter(name, kind) for name, kind in S3_SETTINGS), JOB_ID),
        related="listImageStores", deprecated="addImageStoreS3",
        description="Adds an S3 image store. Deprecated: use addImageStoreS3."),
    *(_listing(name, provider) for name, provider in (
        ("listS3s", "s3"), ("listS3", "s3"), ("listSwifts", "swift"), ("listSwift", "swift"))),
)
