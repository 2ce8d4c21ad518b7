"""The planner against its limit: plans in a zone of 1,000 hosts, each storage agent and hypervisor, and 100 image stores.

Owns that zone. Refuses to time what is not the planner's: which store and which primary (placement), and the append of a job.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from uuid import UUID

from agents.motion.registry import announced
from bench.measure import Result
from handlers import planner
from handlers.directory import Directory, Store
from handlers.planner import Move, NoMotion
from schema.agent import AgentAnnounced, ProviderSpec
from schema.ids import derive
from schema.image import GIB, PrimarySpec, StoreSpec
from schema.motion import MotionSpec

HOSTS, STORES, PLANS, LIMIT_MS = 1000, 100, 4000, 1.0
ZONE = UUID(int=1)
LACKING = "swift"
"""A provider that nobody in the zone carries."""


def zone() -> tuple[Directory, list[PrimarySpec], list[Store]]:
    """What handlers know of such a zone: every agent carries every strategy of the registry, and one that nothing fits."""
    directory = Directory()
    able = [ProviderSpec(name=name, scope="REGION", settings={}, capabilities=["parallel_parts", "ranged_read"])
            for name in ("folder", "memory", "s3")]
    motions = [*announced(disks=True), *announced(disks=False), MotionSpec(name="staged", moves=[])]
    primaries = []
    for number in random.Random(1).sample(range(HOSTS), HOSTS):
        name = f"host-{number:04}"
        primary = PrimarySpec(id=derive(ZONE, name), name=name, kind="folder", path="/p", zone_id=ZONE, agent=name)
        primaries.append(primary)
        directory.apply(AgentAnnounced(agent=name, zone_id=ZONE, roles=["hypervisor", "storage"], hypervisor="KVM", providers=able,
                                       primaries=[primary], public_key="k", motions=_merged(motions)))
    stores = [Store(spec=StoreSpec(id=derive(ZONE, f"store-{number}"), name=f"store-{number}", provider="s3", url="", prefix="i"),
                    zone_id=ZONE, scope="ZONE", state="Ready") for number in range(STORES)]
    return directory, primaries, stores


def _merged(specs: list[MotionSpec]) -> list[MotionSpec]:
    """One for each strategy, with all of its moves."""
    moves: dict[str, list[str]] = {}
    for spec in specs:
        moves.setdefault(spec.name, []).extend(spec.moves)
    known = {spec.name: spec for spec in specs}
    return [known[name].model_copy(update={"moves": of}) for name, of in moves.items()]


def moves(primaries: list[PrimarySpec], stores: list[Store]) -> list[Move]:
    """Register, create, back up, copy, and what must be refused; each a fifth."""
    dice = random.Random(2)
    odd = Store(spec=stores[0].spec.model_copy(update={"provider": LACKING}), zone_id=ZONE, scope="ZONE", state="Ready")
    made: list[Move] = []
    while len(made) < PLANS:
        store, other, primary = dice.choice(stores), dice.choice(stores), dice.choice(primaries)
        made += [planner.fetch("https://images.example/debian.qcow2", store),
                 planner.restore(store, primary, size=10 * GIB, basis="", field="templateid"),
                 planner.backup(primary, store, size=10 * GIB, basis="", field="volumeid"),
                 planner.copy(store, other, size=GIB, field="id"),
                 planner.copy(store, odd, size=GIB, field="id")]
    return made


async def run() -> Result:
    """Milliseconds of one plan, the median; three rounds."""
    directory, primaries, stores = zone()
    medians, slow = [], []
    by_kind: dict[str, list[float]] = {}
    for _ in range(3):
        took = []
        for move in moves(primaries, stores):
            refused = any(store.spec.provider == LACKING for store in move.stores)
            began = time.perf_counter()
            try:
                planner.plan(directory, move)
            except NoMotion:
                assert refused
            else:
                assert not refused
            took.append((time.perf_counter() - began) * 1e3)
            by_kind.setdefault("a refusal" if refused else move.kind, []).append(took[-1])
        medians.append(statistics.median(took))
        slow.append(statistics.quantiles(took, n=100)[98])
    said = ", ".join(f"{kind} {statistics.median(times):.3f}" for kind, times in itertools.islice(by_kind.items(), 8))
    worst = max(statistics.median(times) for times in by_kind.values())
    return Result("plan, 1,000 hosts and 100 stores", "ms", medians, [LIMIT_MS] * 3, "the limit", 1, 10, higher_is_better=False,
                  notes=[f"medians by move: {said}", f"99th percentile: {max(slow):.3f} ms",
                         "one process; placement (which store, which primary) and the append are not in it"],
                  failed=[] if worst < LIMIT_MS else [f"one kind of move takes {worst:.3f} ms"])
