"""Damages one thing of a running demo, as DEMO_* in the environment say where it is: object, event or projection."""

from __future__ import annotations

import asyncio
import os
import sys

import asyncpg
import botocore.session


def client() -> object:
    """A plain S3 client."""
    return botocore.session.get_session().create_client(
        "s3", endpoint_url=os.environ["DEMO_S3_ENDPOINT"], region_name="us-east-1",
        aws_access_key_id=os.environ["DEMO_S3_ACCESS_KEY"], aws_secret_access_key=os.environ["DEMO_S3_SECRET_KEY"])


def damage_object() -> None:
    """Flip one byte of the largest object."""
    s3, bucket = client(), os.environ["DEMO_BUCKET"]
    listed = s3.list_objects_v2(Bucket=bucket)["Contents"]  # type: ignore[attr-defined] # botocore makes methods at run time
    key = max(listed, key=lambda item: item["Size"])["Key"]
    body = bytearray(s3.get_object(Bucket=bucket, Key=key)["Body"].read())  # type: ignore[attr-defined] # as above
    body[len(body) // 2] ^= 1
    s3.put_object(Bucket=bucket, Key=key, Body=bytes(body))  # type: ignore[attr-defined] # as above


async def damage_row(statement: str) -> None:
    """As superuser, with triggers and privileges out of the way."""
    connection = await asyncpg.connect(os.environ["DEMO_DATABASE_URL"])
    await connection.execute(statement)
    await connection.close()


if __name__ == "__main__":
    match sys.argv[1]:
        case "object":
            damage_object()
        case "event":
            asyncio.run(damage_row("UPDATE es.event SET payload = payload || ' '::bytea WHERE position = 20"))
        case "projection":
            asyncio.run(damage_row("UPDATE read.volume SET name = 'forged' WHERE name = 'data'"))
