"""Motion: how image bytes get from one place to another. No other code moves them.

`direct` is the strategy of this version: between a hypervisor's block device and an image store with nothing in
between. Both directions report progress as bytes acknowledged by the destination and stop within 5 s of a cancel
(asyncio cancellation), leaving nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""(stage, bytes acknowledged by the destination, total or 0): called often, must be cheap; the runtime thins it out."""


def no_progress(stage: str, done: int, total: int) -> None:
    """For callers that do not watch."""


