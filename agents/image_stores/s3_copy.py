"""Copies that an S3 store makes by itself, within its bucket: no byte of them passes through here.

It owns the choice between one request and many, and that every piece comes from the same bytes (the source's ETag is a
condition of each). It refuses to retry by itself: every request goes through the store's `ask`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from agents import stall
from agents.image_stores.several import each
from agents.image_stores.trouble import at
from schema.failure import Refused, WorkFailed

if TYPE_CHECKING:
    from agents.image_stores.s3 import S3ImageStore

AT_ONCE = 256 << 20
"""Bytes of one request: a store that answers when it is done must be done before the silence counts as broken."""
WIDTH = 8
"""Pieces at once."""
CANNOT = ("NotImplemented", "MethodNotAllowed", "501", "405")
CHANGED = ("PreconditionFailed", "412")
ABSENT = ("NoSuchKey", "404")


async def copy(store: S3ImageStore, key: str, to: str) -> None:
    """Make `to` an object with the bytes of `key`; after a failure the caller deletes `to`. Raises WorkFailed when `key` is
    absent or changes meanwhile, Refused when the store does not copy."""
    action = f"copy {key}"
    try:
        seen = await store.ask(action, lambda: store.client.head_object(Bucket=store.bucket, Key=key), plain=ABSENT)
        size = int(seen["ContentLength"])
        source = {"Bucket": store.bucket, "CopySource": {"Bucket": store.bucket, "Key": key}, "CopySourceIfMatch": seen["ETag"]}
        if size <= AT_ONCE:
            await store.ask(action, lambda: store.client.copy_object(Key=to, **source), plain=CANNOT + CHANGED + ABSENT)
        else:
            await _in_parts(store, action, source, to, size)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in CANNOT:
            raise Refused(f"{at(action, store.name)}: the store makes no copies by itself", field="url",
                          remedy="ask for a link that cannot be revoked") from None
        cause = "the object is absent" if code in ABSENT else "the object was changed meanwhile"
        raise WorkFailed(f"{at(action, store.name)}: {cause}", remedy="see who writes or deletes it") from None
    info = await store.stat(to)
    if info is None or info.size != size:
        raise WorkFailed(f"{at(action, store.name)}: the copy has not the {size} bytes of the object", remedy="try again")


async def _in_parts(store: S3ImageStore, action: str, source: dict[str, Any], to: str, size: int) -> None:
    step = max(AT_ONCE, -(-size // store.limits.max_parts))
    begun = await store.ask(action, lambda: store.client.create_multipart_upload(
        Bucket=store.bucket, Key=to, ContentType="application/octet-stream"))
    about = {"Key": to, "UploadId": begun["UploadId"]}
    parts: dict[int, str] = {}

    async def part(start: int) -> None:
        number = start // step + 1
        answer = await store.ask(action, lambda: store.client.upload_part_copy(
            PartNumber=number, CopySourceRange=f"bytes={start}-{min(start + step, size) - 1}", **source, **about),
            plain=CANNOT + CHANGED + ABSENT)
        parts[number] = answer["CopyPartResult"]["ETag"]
        stall.moved()

    await each(range(0, size, step), part, width=WIDTH)
    whole = {"Parts": [{"PartNumber": number, "ETag": parts[number]} for number in sorted(parts)]}
    # An answer that was lost and asked for again says that there is no such upload: the look at the object decides.
    await store.ask(action, lambda: store.client.complete_multipart_upload(
        Bucket=store.bucket, MultipartUpload=whole, **about), absent=("NoSuchUpload",))
