"""Carriers: which storage agents can work on which provider's stores, and which motions there are. A fold, kept sorted.

Owns the indexes that let a plan be made without looking at every agent of the cloud. Refuses to choose: that is `planner`.
An agent that announces itself anew replaces what it said before.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from uuid import UUID

from schema.agent import AgentAnnounced, ProviderSpec
from schema.motion import BEFORE_PLANS, MotionSpec

Place = tuple[str, UUID | None, str, str]
"""(provider in lower case, zone or None for the whole region, strategy, move); the last two empty: whatever they carry."""


@dataclass(slots=True)
class Carriers:
    """The fold of what agents announced."""

    agents: dict[str, AgentAnnounced] = field(default_factory=dict)
    names: dict[Place, list[str]] = field(default_factory=dict)
    """Names of storage agents, sorted, so that two who ask choose the same."""
    strategies: dict[str, set[str]] = field(default_factory=dict)
    """Every strategy ever announced, and the moves that somebody carries by it."""

    def apply(self, said: AgentAnnounced) -> None:
        """Take one announcement in. Twice is harmless."""
        before = self.agents.get(said.agent)
        if before is not None:
            for place in _places(before):
                names = self.names[place]
                del names[bisect_left(names, said.agent)]
        self.agents[said.agent] = said
        for place in _places(said):
            insort(self.names.setdefault(place, []), said.agent)
        for spec in announced(said):
            self.strategies.setdefault(spec.name, set()).update(spec.moves)

    def of(self, provider: str, zone_id: UUID | None, strategy: str = "", move: str = "") -> list[str]:
        """Names of the storage agents that carry the provider, in the zone when one is given, and the move by this strategy
        when one is given; not to be changed."""
        return self.names.get((provider, zone_id, strategy, move), [])


def announced(agent: AgentAnnounced) -> list[MotionSpec]:
    """The motions of an agent."""
    return [BEFORE_PLANS] if agent.motions is None else agent.motions


def motion(agent: AgentAnnounced, strategy: str) -> MotionSpec | None:
    """What the agent announced of this strategy."""
    return next((spec for spec in announced(agent) if spec.name == strategy), None)


def provider(agent: AgentAnnounced, name: str) -> ProviderSpec | None:
    """The image store plug-in of this name that the agent carries."""
    return next((spec for spec in agent.providers if spec.name.lower() == name), None)


def _places(agent: AgentAnnounced) -> list[Place]:
    if "storage" not in agent.roles:
        return []
    able = {("", ""), *((spec.name, move) for spec in announced(agent) for move in spec.moves)}
    return [(name, zone, strategy, move) for name in {spec.name.lower() for spec in agent.providers}
            for zone in (None, agent.zone_id) for strategy, move in able]
