"""Bugs, switched on one at a time by STOREBUS_TEST_BUG: each is a mistake somebody could make, and each must be noticed.

A pytest plug-in (`-p tests.faults.seeded_bugs`). Owns the mistakes as small patches of the product in this process only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from unittest import mock

FLOWS, DELIVERY = "tests/unit/test_flows.py", "tests/unit/test_delivery.py"


def patched(target: str, value: Any) -> None:
    """For the life of this process."""
    mock.patch(target, value).start()


def ack_before_handling() -> None:
    """The delivery is acked, then handled: a crash between the two loses it."""
    from bus.consumer import PartitionConsumer

    right: Any = PartitionConsumer._one

    async def wrong(self: Any, key: str, taken: Any) -> None:
        await taken.delivery.ack()
        await right(self, key, taken)

    patched("bus.consumer.PartitionConsumer._one", wrong)


def expected_versions_ignored() -> None:
    """An append does not compare what it read with what is there."""
    from bus.event_store_memory import MemoryEventStore

    right: Any = MemoryEventStore.append

    async def wrong(self: Any, request: Any) -> Any:
        actual = {stream: len(self.streams.get(stream, ())) - 1 for stream in request.expected}
        from dataclasses import replace

        return await right(self, replace(request, expected=actual))

    patched("bus.event_store_memory.MemoryEventStore.append", wrong)


def relay_forgets_failures() -> None:
    """A publish that failed counts as confirmed: the relay goes on from the highest."""
    from bus.relay import Relay

    right: Any = Relay.send

    async def wrong(self: Any, row: Any) -> None:
        try:
            await right(self, row)
        except Exception:
            return

    patched("bus.relay.Relay.send", wrong)


def cancel_not_undone() -> None:
    """A cancel that came too late leaves the thing that was made."""
    patched("handlers.job.Engine._undo_next", lambda self: self._end(""))


def any_report_counts() -> None:
    """A report of an old attempt is taken for the one that is awaited."""
    from handlers.job import Engine

    right: Any = Engine.report

    def wrong(self: Any, report: Any) -> None:
        job = self.job
        right(self, report.model_copy(update={"work_id": job.work_id or report.work_id, "attempt": job.attempt or report.attempt}))

    patched("handlers.job.Engine.report", wrong)


def attempts_share_a_name() -> None:
    """A new attempt writes under the name of the old one."""
    from handlers.job import Engine

    right: Any = Engine._give

    def wrong(self: Any, step: Any, name: str, attempt: int) -> bool:
        return bool(right(self, step, name, 1))

    patched("handlers.job.Engine._give", wrong)


def no_timer_for_orders() -> None:
    """An order goes out and nobody will ever ask what became of it."""
    from handlers.job import Engine

    right: Any = Engine._give

    def wrong(self: Any, step: Any, name: str, attempt: int) -> bool:
        given = bool(right(self, step, name, attempt))
        self.context.out.set_timers.clear()
        return given

    patched("handlers.job.Engine._give", wrong)


def counters_not_enforced() -> None:
    """A counter may pass its ceiling."""
    from bus.event_store_memory import MemoryEventStore

    right: Any = MemoryEventStore._counters_after

    def wrong(self: Any, changes: Any) -> Any:
        from dataclasses import replace

        return right(self, [replace(change, ceiling=None) for change in changes])

    patched("bus.event_store_memory.MemoryEventStore._counters_after", wrong)


def claims_not_released() -> None:
    """A name is never free again."""
    patched("handlers.decider.Context.unclaim", lambda self, name, value, holder: None)


def residents_leak() -> None:
    """A failed transfer leaves its store marked as used."""
    from handlers.template_register import RegisterFlow

    right: Any = RegisterFlow.fail

    def wrong(self: Any, context: Any, failure: Any) -> None:
        kept = list(context.out.counters)
        right(self, context, failure)
        context.out.counters[:] = kept

    patched("handlers.template_register.RegisterFlow.fail", wrong)


def held_keys_overtaken() -> None:
    """Messages behind a held one are handled: the key's order is lost."""

    async def never(self: Any, key: str) -> bool:
        return False

    patched("bus.consumer.PartitionConsumer._still_held", never)


def same_id_other_body() -> None:
    """A command id that was used for something else is taken for a repeat."""
    patched("handlers.runtime._same", lambda state, fact: None)


def redirects_unchecked() -> None:
    """Only the first address of a download is looked at."""
    from agents.url_guard import UrlGuard

    right: Any = UrlGuard.check

    async def wrong(self: Any, url: str, *, base: str = "") -> Any:
        if base:
            from urllib.parse import urljoin, urlsplit

            from agents.url_guard import Target

            whole = urljoin(base, url)
            parts = urlsplit(whole)
            return Target(whole, parts.hostname or "", parts.port or 80, (parts.hostname or "",))
        return await right(self, url)

    patched("agents.url_guard.UrlGuard.check", wrong)


BUGS: dict[str, tuple[Callable[[], None], str]] = {
    "ack_before_handling": (ack_before_handling, DELIVERY),
    "expected_versions_ignored": (expected_versions_ignored, FLOWS),
    "relay_forgets_failures": (relay_forgets_failures, DELIVERY),
    "cancel_not_undone": (cancel_not_undone, FLOWS),
    "any_report_counts": (any_report_counts, FLOWS),
    "attempts_share_a_name": (attempts_share_a_name, FLOWS),
    "no_timer_for_orders": (no_timer_for_orders, FLOWS),
    "counters_not_enforced": (counters_not_enforced, FLOWS),
    "claims_not_released": (claims_not_released, FLOWS),
    "residents_leak": (residents_leak, FLOWS),
    "held_keys_overtaken": (held_keys_overtaken, DELIVERY),
    "same_id_other_body": (same_id_other_body, FLOWS),
    "redirects_unchecked": (redirects_unchecked, "tests/unit/test_redirects.py"),
}
"""Name -> (the mistake, the tests that must notice it)."""


def pytest_configure(config: object) -> None:
    """Switch on the bug that the environment names."""
    name = os.environ.get("STOREBUS_TEST_BUG")
    if name:
        BUGS[name][0]()
