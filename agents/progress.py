"""Progress of an agent's orders: bytes acknowledged by the destination, thinned to one message a second.

Owns the numbers a person sees: never going back, a smoothed rate, an estimate of what is left. Refuses to say 100 % before the
work said that it had verified. Pure but for the clock it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from schema.agent import WorkProgress
from schema.message import Order

SMOOTH = 0.3
"""Weight of the last second in the rate."""


@dataclass
class _Watch:
    order: Order
    stage: str = "start"
    done: int = 0
    total: int = 0
    rate: float = 0.0
    told: int = 0
    at: float = 0.0


@dataclass
class ProgressBoard:
    """The last word on each order that is being done."""

    _watches: dict[str, _Watch] = field(default_factory=dict)

    def begin(self, order: Order, now: float) -> None:
        """An order is being done from here on."""
        self._watches[str(order.work_id)] = _Watch(order, at=now)

    def end(self, order: Order) -> None:
        """It is over: its report says how."""
        self._watches.pop(str(order.work_id), None)

    def update(self, order: Order, stage: str, done: int, total: int) -> None:
        """What the mover said last."""
        watch = self._watches.get(str(order.work_id))
        if watch is not None:
            watch.stage, watch.total = stage, max(total, watch.total)
            watch.done = max(watch.done, done)

    def tick(self, now: float) -> list[WorkProgress]:
        """Once a second: everything that is being done, with its rate since the last tick."""
        return [self._tell(watch, now) for watch in self._watches.values()]

    def _tell(self, watch: _Watch, now: float) -> WorkProgress:
        spent = max(now - watch.at, 1e-3)
        current = (watch.done - watch.told) / spent
        watch.rate = current if watch.told == 0 else (1 - SMOOTH) * watch.rate + SMOOTH * current
        watch.told, watch.at = watch.done, now
        left = watch.total - watch.done
        order = watch.order
        return WorkProgress(
            job_id=order.job_id, work_id=order.work_id, attempt=order.attempt, agent=order.agent, stage=watch.stage,
            bytes=watch.done, total=watch.total, rate=int(watch.rate),
            eta=int(left / watch.rate) if watch.rate >= 1 and left >= 0 and watch.total else None)
