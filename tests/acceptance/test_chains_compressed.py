"""Chains whose full links are compressed: the tests of chains once more, since deltas over such links and merges into them are read
and written another way."""

from __future__ import annotations

import contextlib

from tests.acceptance import test_chains
from tests.acceptance.test_chains import (
    chain,
    test_a_chain_lives_and_dies_in_any_order,
    test_kill_9_at_any_moment_of_a_chain_costs_at_most_a_full_backup,
)

__all__ = ["chain", "test_a_chain_lives_and_dies_in_any_order", "test_kill_9_at_any_moment_of_a_chain_costs_at_most_a_full_backup"]

ENVIRONMENT = test_chains.ENVIRONMENT | {"STOREBUS_SNAPSHOT_COMPRESSION": "zstd"}


async def test_a_full_one_is_compressed(chain: test_chains.Chain) -> None:
    """Else the tests above would show nothing."""
    made = await chain.snapshot()
    key = next(row["key"] for row in await chain.rows() if row["id"] == made)
    with contextlib.closing(chain.place.s3.client()) as client:
        head = client.get_object(Bucket=chain.place.bucket, Key=key, Range="bytes=0-111")["Body"].read()
    assert head[:4] == b"QFI\xfb" and int.from_bytes(head[72:80], "big") == 1 << 3 and head[104] == 1, "zstd, as qcow2.txt says it"
    await chain.delete(made)
    await chain.check()
    await chain.place.up.call("deleteVolume", id=chain.volume)
