"""When image stores are scrubbed by themselves: what the settings say, brought to every store.

Owns the reading of STOREBUS_SCRUB_EVERY and the loop that sees to it that each store, also one added later, has the schedule
that the settings say. Refuses to know when a time has come: that is a timer beside the log, which outlives this process.
"""

from __future__ import annotations

import asyncio
import logging
import re
from uuid import uuid4

from bus.errors import Conflict, StoreAway
from handlers import scrub
from handlers.runtime import Runtime
from schema.failure import BadParameter, Failed
from schema.scrub import ScheduleScrub

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""How often new stores are looked for."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
MOST_S = 366 * 86400


def interval(text: str) -> int:
    """`1d`, `12h`, `90s` as seconds; 0 for nothing. Raises BadParameter."""
    if text.strip() in ("", "0", "off"):
        return 0
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip())
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    if not scrub.SOONEST_S <= seconds <= MOST_S:
        raise BadParameter(f"{text[:32]!r} is no time between two scrubs", field="STOREBUS_SCRUB_EVERY",
                           remedy=f"give a number and s, m, h, d or w, {scrub.SOONEST_S}s to 366d, as 1d; unset: never")
    return seconds


def checked_share(text: str) -> str:
    """The share as given. Raises BadParameter naming the setting."""
    try:
        scrub.share_of(text)
    except BadParameter as wrong:
        raise BadParameter(wrong.failure.cause, field="STOREBUS_SCRUB_SHARE", remedy=wrong.failure.remedy) from None
    return text


async def keep_schedules(runtime: Runtime, *, every_s: int, share: str) -> None:
    """Until it is cancelled: every store that is ready has this schedule. Several processes may do this at once."""
    done: set[object] = set()
    while True:
        try:
            await runtime.catch_up()
            ready = {store.spec.id for store in runtime.directory.of_role() if store.state == "Ready"}
            done &= ready
            for store_id in ready - done:
                if await runtime.scrub_schedule(store_id) != (every_s, share if every_s else None):
                    await runtime.run_now(ScheduleScrub(id=store_id, every_s=every_s, share=share), uuid4(), "system")
                done.add(store_id)
        except (StoreAway, Conflict, Failed) as away:
            log.warning("the schedule of scrubs waits: %s", away, extra={"action": "scrub_schedule_waits"})
        await asyncio.sleep(LOOK_S)


__all__ = ["checked_share", "interval", "keep_schedules"]
