"""Not here: commands of CloudStack's storage contract that this API does not have, each with the reason.

Owns the two lists and their words. Refuses to be an excuse: a name leaves its list in the commit that brings the command, and the
tests hold the contract's commands to being either in the registry or here.
"""

from __future__ import annotations

from collections.abc import Mapping

NOT_YET: Mapping[str, str] = {
    "migrateSecondaryStorageData": "it comes with migration between stores",
    "migrateResourceToAnotherSecondaryStorage": "it comes with migration between stores",
    "listImageStoreObjects": "scrubImageStore reports what a store holds that nobody knows; a listing comes later",
    "downloadImageStoreObject": "the extract commands give a thing's URL; that of any object comes with listImageStoreObjects",
    "getUploadParamsForTemplate": "uploads from browsers come later: registerTemplate fetches a URL",
    "getUploadParamsForIso": "uploads from browsers come later: registerIso fetches a URL",
    "getUploadParamsForVolume": "uploads from browsers come later: uploadVolume takes a URL",
    "attachIso": "drives of running machines come later",
    "detachIso": "drives of running machines come later",
    "migrateVolume": "moves between primary stores come with migration between stores",
    "changeOfferingForVolume": "resizeVolume changes a volume's size; its offering stays",
}
"""They are wanted."""
NOT_OURS: Mapping[str, str] = {
    "updateCloudToUseObjectStore": "it turns NFS stores into a cache: here nothing is staged, add the object store",
}
"""They have no meaning here."""


def reason(name: str) -> str:
    """Why a command of this name (in any letter case) is not here; empty when nothing is known of it."""
    for each, why in (*NOT_YET.items(), *NOT_OURS.items()):
        if each.lower() == name.lower():
            return why
    return ""


__all__ = ["NOT_OURS", "NOT_YET", "reason"]
