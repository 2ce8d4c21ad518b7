"""The planner: how bytes move. A pure function of the directory and a move: to a plan, or to what is missing where.

Owns the choice: every strategy that any agent announced is asked for its cost on this move, the cheapest legal one wins,
the reason and the refused ones are kept. Refuses to know strategies by name, so that a new one is an agent that announces
it; and to choose stores (`placement`). Nothing here is measured: costs rank, they promise nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import UUID

from handlers import carriers
from handlers.carriers import Carriers
from handlers.directory import Directory, Store
from schema.agent import AgentAnnounced
from schema.failure import Unavailable
from schema.image import PrimarySpec
from schema.motion import BACKUP, COPY, FETCH, MERGE, RESTORE, SEED, Cost, Endpoint, MotionPlan, MotionSpec, RefusedMotion

NOMINAL = 1 << 30
"""Bytes by which strategies are compared when nobody knows how many there are."""


class NoMotion(Unavailable):
    """No strategy can make this move. `refused` says of each what is missing where."""

    def __init__(self, move: Move, refused: list[RefusedMotion]) -> None:
        said = "; ".join(f"{one.strategy}: {one.cause}" for one in refused)
        super().__init__(f"nothing can move {move.words}: {said}", field=move.field, remedy=_remedy(refused))
        self.move, self.refused = move, refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What is to be moved, from where to where, and who could."""

    kind: str
    """Of schema.motion: FETCH, BACKUP, RESTORE, COPY, MERGE, SEED."""
    source: Endpoint
    target: Endpoint
    reads: Store | None = None
    """The image store that is read."""
    writes: Store | None = None
    """The image store that is written."""
    host: str = ""
    """The one agent that reaches the disk; empty: any storage agent that reaches the store."""
    zone_id: UUID | None = None
    """Where a storage agent must be; None: anywhere."""
    size: int | None = None
    """Bytes, each counted once."""
    basis: str = ""
    field: str = ""
    """The caller's parameter that a refusal names."""

    @property
    def words(self) -> str:
        """For a sentence."""
        return f"bytes from {_words(self.source)} to {_words(self.target)}"

    @property
    def stores(self) -> tuple[Store, ...]:
        """The image stores concerned."""
        return tuple(store for store in (self.reads, self.writes) if store is not None)


def fetch(url: str, store: Store, *, field: str = "url") -> Move:
    """A download. Of the URL only its host is told: the rest may let people in."""
    host = urlsplit(url).hostname or "a URL"
    return Move(kind=FETCH, source=Endpoint(kind="url", name=host), target=_store(store), writes=store, zone_id=store.zone_id,
                basis="the server tells its size when it is asked", field=field)


def backup(primary: PrimarySpec, store: Store, *, size: int | None, basis: str, field: str) -> Move:
    """A disk's content into a store."""
    return Move(kind=BACKUP, source=_disk(primary), target=_store(store), writes=store, host=primary.agent, size=size,
                basis=basis, field=field)


def restore(store: Store, primary: PrimarySpec, *, size: int, basis: str, field: str) -> Move:
    """An object into a new disk."""
    return Move(kind=RESTORE, source=_store(store), target=_disk(primary), reads=store, host=primary.agent, size=size,
                basis=basis, field=field)


def seeded(primary: PrimarySpec, *, size: int) -> Move:
    """A template's copy on a primary store into a new disk there."""
    return Move(kind=SEED, source=Endpoint(kind="seed", id=primary.id, name=primary.name), target=_disk(primary),
                host=primary.agent, size=size, basis="the primary store has the template's bytes", field="templateid")


def copy(source: Store, target: Store, *, size: int, field: str) -> Move:
    """An object from one store into another."""
    return Move(kind=COPY, source=_store(source), target=_store(target), reads=source, writes=target,
                zone_id=source.zone_id or target.zone_id, size=size, basis="the object's size", field=field)


def merge(source: Store, target: Store, *, size: int, field: str) -> Move:
    """Links of a chain in one store (`size`: their bytes, all together) into one object, there or in another."""
    return Move(kind=MERGE, source=_store(source), target=_store(target), reads=source, writes=target,
                zone_id=source.zone_id or target.zone_id, size=size,
                basis="the sizes of the objects that are merged", field=field)


def plan(directory: Directory, move: Move) -> MotionPlan:
    """The cheapest legal way. Raises NoMotion."""
    offers: list[_Offer] = []
    refused: list[RefusedMotion] = []
    known = directory.carriers
    for strategy in sorted(known.strategies or {"direct": set()}):
        found = _offer(known, strategy, move)
        if isinstance(found, RefusedMotion):
            refused.append(found)
        else:
            offers.append(found)
    if not offers:
        raise NoMotion(move, refused)
    offers.sort(key=lambda offer: (offer.rank, offer.spec.name))
    best, *dearer = offers
    refused += [RefusedMotion(strategy=offer.spec.name, cause=f"it is dearer: {_price(offer)} against {_price(best)}")
                for offer in dearer]
    return MotionPlan(
        strategy=best.spec.name, move=move.kind, source=move.source, target=move.target, agent=best.agent,
        cost=best.cost, reason=_reason(best, dearer, refused), refused=refused)


# --- one strategy ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Offer:
    spec: MotionSpec
    agent: str
    cost: Cost
    rank: float
    """Seconds, of a nominal size where the real one is not known."""


def _offer(known: Carriers, strategy: str, move: Move) -> _Offer | RefusedMotion:
    """What a strategy costs here, or what it lacks."""
    if move.kind not in known.strategies.get(strategy, ()):
        return RefusedMotion(strategy=strategy, missing=f"{strategy} for {move.kind}", where="every agent",
                             cause=f"no agent carries it from {move.source.kind} to {move.target.kind}")
    found = _by_host(known, strategy, move) if move.host else _by_anyone(known, strategy, move)
    if isinstance(found, RefusedMotion):
        return found
    spec, agent = found
    lacking = _lacking(known, spec, agent, move)
    if lacking is not None:
        return lacking
    total = None if move.size is None else move.size * spec.passes
    work = (NOMINAL if move.size is None else move.size) * max(1, spec.passes)  # what crosses no network is copied still
    seconds = spec.start + work / max(1, spec.rate)
    cost = Cost(bytes=total, seconds=None if total is None else -(-work // max(1, spec.rate)) + spec.start, basis=move.basis)
    return _Offer(spec, agent.agent, cost, seconds)


def _by_host(known: Carriers, strategy: str, move: Move) -> tuple[MotionSpec, AgentAnnounced] | RefusedMotion:
    """The disk's own host: nobody else reaches it."""
    agent = known.agents.get(move.host)
    disk = move.source if move.kind == BACKUP else move.target
    if agent is None:
        return RefusedMotion(strategy=strategy, missing="an agent", where=_words(disk),
                             cause=f"the agent {move.host} of {_words(disk)} has not announced itself")
    spec = carriers.motion(agent, strategy)
    if spec is None or move.kind not in spec.moves:
        return RefusedMotion(strategy=strategy, missing=f"{strategy} for {move.kind}", where=_host(agent),
                             cause=f"{_host(agent)} does not carry it from {move.source.kind} to {move.target.kind}")
    if agent.motions is not None:
        for store in move.stores:
            if carriers.provider(agent, store.spec.provider) is None:
                return RefusedMotion(strategy=strategy, missing=f"the provider {store.spec.provider}", where=_host(agent),
                                     cause=f"{_host(agent)} does not carry the provider {store.spec.provider}")
    return spec, agent


def _by_anyone(known: Carriers, strategy: str, move: Move) -> tuple[MotionSpec, AgentAnnounced] | RefusedMotion:
    """The first storage agent, by name, that reaches the stores and carries the strategy."""
    wanted = sorted({store.spec.provider for store in move.stores})
    place = f"the storage agents of the zone {move.zone_id}" if move.zone_id else "the storage agents"
    able = _first(known, [known.of(provider, move.zone_id, strategy, move.kind) for provider in wanted], wanted)
    spec = carriers.motion(able, strategy) if able is not None else None
    if able is not None and spec is not None:
        return spec, able
    if _first(known, [known.of(provider, move.zone_id) for provider in wanted], wanted) is not None:
        return RefusedMotion(strategy=strategy, missing=f"{strategy} for {move.kind}", where=place,
                             cause=f"none of {place} carries it from {move.source.kind} to {move.target.kind}")
    providers = " and ".join(wanted)
    return RefusedMotion(strategy=strategy, missing=f"the provider {providers}", where=place,
                         cause=f"none of {place} carries the provider {providers}")


def _first(known: Carriers, lists: list[list[str]], providers: list[str]) -> AgentAnnounced | None:
    """The first agent, by name, that is on every list, the shortest of which is looked through."""
    for name in min(lists, key=len):
        agent = known.agents[name]
        if len(lists) == 1 or all(carriers.provider(agent, provider) is not None for provider in providers):
            return agent
    return None


def _lacking(known: Carriers, spec: MotionSpec, agent: AgentAnnounced, move: Move) -> RefusedMotion | None:
    """What an image store lacks that the strategy needs of it."""
    for store, needs in ((move.reads, spec.reads), (move.writes, spec.writes)):
        if store is None:
            continue
        has = _capabilities(known, agent, store)
        for need in needs:
            if has is not None and need not in has:
                where = f"the image store {store.spec.name} ({store.spec.provider})"
                return RefusedMotion(strategy=spec.name, missing=need, where=where, cause=f"{where} lacks {need}")
    return None


def _capabilities(known: Carriers, agent: AgentAnnounced, store: Store) -> list[str] | None:
    """What the store can do, as the agent that works on it knows it, else another one; None: nobody knows."""
    own = carriers.provider(agent, store.spec.provider)
    if own is not None:
        return own.capabilities
    for name in known.of(store.spec.provider, None):
        other = carriers.provider(known.agents[name], store.spec.provider)
        if other is not None:
            return other.capabilities
    return None


# --- words -----------------------------------------------------------------------------------------------------------


def _reason(best: _Offer, dearer: list[_Offer], refused: list[RefusedMotion]) -> str:
    if dearer:
        return f"the cheapest of {len(dearer) + 1} that can: {_price(best)}"
    if refused:
        return "the only one that can"
    return "the only one that any agent carries"


def _price(offer: _Offer) -> str:
    if offer.cost.seconds is not None:
        return f"about {offer.cost.seconds} s"
    return f"about {offer.rank:.0f} s for each GiB"


def _remedy(refused: list[RefusedMotion]) -> str:
    """What to do about the first thing that is missing: it is what the strategy nearest to possible lacks."""
    near = next((one for one in refused if one.where != "every agent"), refused[0] if refused else None)
    if near is None or near.missing == "an agent":
        return "start the agent"
    if near.missing.startswith("the provider"):
        return f"install the plug-in of {near.missing} where {near.where} runs, or use another image store"
    if near.where.startswith("the image store"):
        return "use another image store"
    return "update the agent, or start one that carries it: storebus serve agent"


def _host(agent: AgentAnnounced) -> str:
    return f"the agent {agent.agent}{f' ({agent.hypervisor})' if agent.hypervisor else ''}"


def _store(store: Store) -> Endpoint:
    return Endpoint(kind="store", id=store.spec.id, name=store.spec.name)


def _disk(primary: PrimarySpec) -> Endpoint:
    return Endpoint(kind="disk", id=primary.id, name=primary.name)


def _words(end: Endpoint) -> str:
    kinds = {"url": "the URL at", "store": "the image store", "disk": "the primary store",
             "seed": "the template's copy on the primary store"}
    return f"{kinds.get(end.kind, end.kind)} {end.name}"


__all__ = ["Move", "NoMotion", "backup", "copy", "fetch", "merge", "plan", "restore", "seeded"]
