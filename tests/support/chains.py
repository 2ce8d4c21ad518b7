"""Chains of snapshots for tests of the deciders: a cloud with a store and a volume, and agents played by the test."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from handlers.agent import proof
from handlers.decider import Limits
from handlers.snapshot import SnapshotState
from schema.agent import (
    AgentHello,
    DeleteImages,
    ProviderSpec,
)
from schema.ids import derive
from schema.image_store import AddImageStore
from schema.message import Order
from schema.motion import MERGE, MotionSpec
from schema.snapshot import CreateSnapshot, DeleteSnapshot
from schema.volume import CreateVolume
from tests.support.cloud import ABLE, S3_SETTINGS, TOKEN, Cloud
from tests.support.system import FoldedViews


class Chains:
    """A cloud with a store and a volume, and short words for what the tests do with them."""

    def __init__(self, cloud: Cloud, store: UUID, volume: UUID) -> None:
        self.cloud, self.store, self.volume = cloud, store, volume
        self._views = FoldedViews(cloud.store)  # type: ignore[arg-type] # in memory here

    @classmethod
    async def start(cls, *, most: int = 8, merges: bool = False) -> Chains:
        """`merges`: an agent is there that merges links; without one, hidden links stay until the last that needs them goes."""
        cloud = await Cloud.start()
        if merges:
            await cloud.handle(AgentHello(
                agent="merger", zone_id=cloud.zone_id, roles=["storage"], public_key="k", proof=proof(TOKEN, "merger", "k"),
                providers=[ProviderSpec(name="s3", scope="REGION", settings=S3_SETTINGS, capabilities=ABLE)],
                motions=[MotionSpec(name="store-to-store", moves=[MERGE], reads=["ranged_read"], writes=["parallel_parts"])]),
                kind="report")
        cloud.runtime.limits = Limits(max_chain=most)
        store = await cloud.send(AddImageStore(name="s", provider="S3", details={"bucket": "b"}))
        await cloud.settle()
        volume = await cloud.send(CreateVolume(name="v", size=1))
        await cloud.settle()
        return cls(cloud, derive(store, "image_store"), derive(volume, "volume"))

    async def snapshot(self) -> UUID:
        job = await self.cloud.send(CreateSnapshot(volume_id=self.volume))
        await self.cloud.settle()
        assert await self.cloud.ends(job) == ["job.completed"]
        return derive(job, "snapshot")

    async def delete(self, snapshot: UUID) -> str:
        job = await self.cloud.send(DeleteSnapshot(id=snapshot))
        await self.cloud.settle()
        return (await self.cloud.ends(job))[0]

    async def state(self, snapshot: UUID) -> SnapshotState:
        state: SnapshotState = await (await self.cloud.another()).runtime._state(f"snapshot-{snapshot}")
        return state

    async def statuses(self, *snapshots: UUID) -> list[str]:
        return [(await self.state(each)).status for each in snapshots]

    async def open(self, kind: type[Order]) -> Any:
        (order,) = [order for order in await self.cloud.open_orders() if isinstance(order, kind)]
        return order

    async def residents(self) -> int:
        return await self.cloud.value(f"image_store/{self.store}/residents")

    async def counted(self) -> None:
        """The counters of the store, and of what the account holds, are the sum of what is there."""
        rows = await self.cloud.rows("snapshot.requested")
        states = [await self.state(UUID(row.stream.removeprefix("snapshot-"))) for row in rows]
        there = [state for state in states if state.status in ("BackedUp", "Hidden")]
        bytes_there = sum(state.counted + (state.replaced.counted if state.replaced else 0) for state in there)
        assert await self.cloud.value(f"image_store/{self.store}/used") == bytes_there
        await self._shown(there)
        assert await self.cloud.value(f"image_store/{self.store}/reserved") == 0
        assert await self.residents() == len(there) + sum(state.replaced is not None for state in states)

    async def _shown(self, there: list[SnapshotState]) -> None:
        """What lists say of each is what its chain is."""
        tables = await self._views.tables()
        by_id = {state.id: state for state in there}
        for state in there:
            if state.status != "BackedUp":
                continue
            links: list[SnapshotState] = [state]
            while links[-1].parent is not None:
                links.append(by_id[links[-1].parent])
            row = tables["snapshot"][str(state.id)]
            total = sum(link.image.physical_size for link in links if link.image is not None)
            parent = str(state.parent) if state.parent is not None else None
            assert (row["chain_size"], row["depth"], row["parent_id"]) == (total, len(links) - 1, parent)
            assert tables["snapshot_store_ref"][f"{state.id}/{self.store}"]["key"] == (state.image.key if state.image else "")

    async def deleted_keys(self) -> list[str]:
        return [key for order in await self.cloud.orders() if isinstance(order, DeleteImages) for key in order.keys]
