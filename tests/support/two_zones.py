"""Two zones in memory, each with its agent, that carries all motions there are; image stores of one kind or the other."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from api.edge import Answer, Edge
from handlers.agent import create_zone, proof
from schema.agent import AgentHello, ProviderSpec
from schema.ids import derive
from schema.image import PrimarySpec
from schema.motion import BACKUP, COPY, FETCH, MERGE, RESTORE, SEED, MotionSpec
from tests.support.cloud import ABLE, S3_SETTINGS, TOKEN
from tests.support.system import FakeSystem

MOTIONS = [MotionSpec(name="direct", moves=[FETCH, BACKUP, RESTORE], reads=["ranged_read"], writes=["parallel_parts"]),
           MotionSpec(name="store-to-store", moves=[COPY, MERGE], reads=["ranged_read"], writes=["parallel_parts"], passes=2),
           MotionSpec(name="seed", moves=[SEED], passes=0)]
PROVIDERS = [ProviderSpec(name="s3", scope="REGION", settings=S3_SETTINGS, capabilities=[*ABLE, "presigned_get"]),
             ProviderSpec(name="folder", scope="ZONE", settings={"properties": {}}, capabilities=ABLE)]


class TwoZones:
    """`ask` and `ok` speak CloudStack's words; `cloud` plays the agents."""

    def __init__(self, system: FakeSystem, other: UUID) -> None:
        self.system, self.cloud, self.edge = system, system.cloud, Edge(system, show_s=0.1)
        self.here, self.other = system.cloud.zone_id, other
        self.stores: list[UUID] = []

    @classmethod
    async def start(cls, provider: str = "folder") -> TwoZones:
        system = await FakeSystem.start()
        other = await create_zone(system.cloud.runtime, "zone-2")
        scene = cls(system, other)
        for name, zone_id in (("host-1", scene.here), ("host-2", other)):
            primary = PrimarySpec(id=derive(zone_id, "primary"), name="p", kind="memory", path="/p", zone_id=zone_id, agent=name)
            await system.cloud.handle(AgentHello(
                agent=name, zone_id=zone_id, roles=["storage", "hypervisor"], hypervisor="KVM", providers=PROVIDERS, primaries=[primary],
                public_key="k", proof=proof(TOKEN, name, "k"), motions=MOTIONS), kind="report")
        async with system.working():
            for number, zone_id in enumerate((scene.here, other) if provider == "folder" else (scene.here,)):
                where = {"zoneid": zone_id} if provider == "folder" else {"details[0].key": "bucket", "details[0].value": "b"}
                made = await scene.ok("addImageStore", provider=provider, name=f"s{number}", **where)
                scene.stores.append(UUID(made["imagestore"]["id"]))
        return scene

    async def ask(self, command: str, **parameters: object) -> Answer:
        """An answer."""
        return await self.edge.call({"command": command, **{name: str(value) for name, value in parameters.items()}})

    async def ok(self, command: str, **parameters: object) -> dict[str, Any]:
        """The body of an answer that is none of an error."""
        answer = await self.ask(command, **parameters)
        assert answer.status == 200, answer
        body: dict[str, Any] = next(iter(answer.body.values()))
        return body

    async def register(self, **more: object) -> tuple[str, str]:
        """A template, or an ISO, whose job has not ended: (id, job)."""
        given = {"name": "t", "url": "http://x/y.qcow2", "format": "qcow2", "hypervisor": "KVM"} | more
        answer = await self.ok("registerTemplate", **given)
        return answer["template"][0]["id"], answer["template"][0]["jobid"]

    async def ended(self, job: str) -> dict[str, Any]:
        """The job, once the agents have done everything."""
        await self.cloud.settle()
        return await self.ok("queryAsyncJobResult", jobid=job)

    async def rows(self, **filters: object) -> dict[str, tuple[bool, str]]:
        """Zone -> (isready, status) of the templates that a list shows."""
        found = await self.ok("listTemplates", **({"templatefilter": "all"} | filters))
        return {row["zoneid"]: (row["isready"], row["status"]) for row in found.get("template", [])}

    async def orders(self, kind: type) -> list[Any]:
        """Every order of a kind so far."""
        return [order for order in await self.cloud.orders() if isinstance(order, kind)]

    async def counters(self) -> dict[str, int]:
        """Those that are not zero."""
        return {name: value for name, (value, _) in (await self.cloud.store.counters()).items() if value}
