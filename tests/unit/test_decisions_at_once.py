"""Decisions side by side in one process: what one forgets, another may be about to use."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from schema.ids import derive
from schema.image_store import AddImageStore
from schema.snapshot import CreateSnapshot
from schema.volume import CreateVolume
from tests.support.cloud import Cloud


async def test_many_checks_of_commands_about_one_thing() -> None:
    """Each forgets what is remembered of the volume while others wait for the log."""
    cloud = await Cloud.start()
    await cloud.send(AddImageStore(name="s", provider="S3", details={"bucket": "b"}))
    made = await cloud.send(CreateVolume(name="v", size=1))
    await cloud.settle()
    streams, log = cloud.store.read_streams, cloud.store.read_log

    async def slow(names: Sequence[str]) -> Any:
        await asyncio.sleep(0.002)
        return await streams(names)

    async def slow_log(*arguments: Any, **named: Any) -> Any:
        await asyncio.sleep(0.003)
        return await log(*arguments, **named)

    cloud.store.read_streams = slow  # type: ignore[method-assign] # a log that is farther away
    cloud.store.read_log = slow_log  # type: ignore[method-assign]
    command = CreateSnapshot(volume_id=derive(made, "volume"))

    async def one(number: int) -> None:
        await asyncio.sleep(0.0003 * number)
        await cloud.runtime.precheck(command, uuid4())

    await asyncio.gather(*(one(number) for number in range(200)))
