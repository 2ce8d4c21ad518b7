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
    ended: bool = False


@dataclass
class ProgressBoard:
    """The last word on each order that is being done."""

    _watches: dict[str, _Watch] = field(default_factory=dict)

    def begin(self, order: Order, now: float) -> None:
        """An order is being done from here on."""
        self._watches[str(order.work_id)] = _Watch(order, at=now)

    def end(self, order: Order, *, completed: bool) -> None:
        """It is over: its report says how. Completed work is told of once more, as whole."""
        watch = self._watches.get(str(order.work_id))
        if watch is None:
            return
        if completed and watch.total:
            watch.stage, watch.done, watch.ended = "done", watch.total, True
        else:
            del self._watches[str(order.work_id)]

    def update(self, order: Order, stage: str, done: int, total: int) -> None:
        """What the mover said last."""
        watch = self._watches.get(str(order.work_id))
        if watch is not None:
            watch.stage, watch.total = stage, max(total, watch.total)
            watch.done = max(watch.done, min(done, watch.total) if watch.total else done)

    def tick(self, now: float) -> list[WorkProgress]:
        """Once a second: everything that is being done, with its rate since the last tick."""
        told = [self._tell(watch, now) for watch in self._watches.values()]
        self._watches = {work: watch for work, watch in self._watches.items() if not watch.ended}
        return told

    def _tell(self, watch: _Watch, now: float) -> WorkProgress:
        spent = max(now - watch.at, 1e-3)
        current = (watch.done - watch.told) / spent
        watch.rate = current if watch.told == 0 else (1 - SMOOTH) * watch.rate + SMOOTH * current
        watch.told, watch.at = watch.done, now
        left = watch.total - watch.done
        whole = watch.total and watch.done >= watch.total and not watch.ended  # acknowledged, not verified yet
        order = watch.order
        return WorkProgress(
            job_id=order.job_id, work_id=order.work_id, attempt=order.attempt, agent=order.agent, stage=watch.stage,
            bytes=watch.total - 1 if whole else watch.done, total=watch.total, rate=int(watch.rate),
            eta=int(left / watch.rate) if watch.rate >= 1 and left >= 0 and watch.total else None)
