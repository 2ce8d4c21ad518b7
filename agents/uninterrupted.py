"""Work that must end before its caller may: clean-up, and threads that still use a buffer or a file descriptor.

Cancelling a coroutine never stops a thread that it started. Who lets go of the thread's buffer, connection or descriptor at
that moment hands it to somebody else while it is written: so a cancelled caller waits for the thread, then is cancelled.
Refuses work without an end of its own: what is given here is short or bounded by its own time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_the_end(work: Awaitable[T], undo: Callable[[T], Awaitable[object]] | None = None) -> T:
    """The result of `work`, which is finished even when the caller is cancelled, once or often; the cancel comes after.

    Then nobody gets the result, so `undo` is given it: what was made must be removed, what was opened closed."""
    task = asyncio.ensure_future(work)
    stopped: asyncio.CancelledError | None = None
    while not task.done():
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task.add_done_callback(partial(_wake, ended))
        try:  # as asyncio.wait does, which takes a fifth of what a thread costs, for each piece of a disk
            await ended
        except asyncio.CancelledError as error:
            stopped = error
    if stopped is not None:
        if not task.cancelled() and task.exception() is None and undo is not None:
            with contextlib.suppress(asyncio.CancelledError, Exception):  # the caller was cancelled: that is what it hears
                await to_the_end(undo(task.result()))
        raise stopped
    return task.result()


def _wake(ended: asyncio.Future[None], _: object) -> None:
    if not ended.done():
        ended.set_result(None)


async def in_thread(call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """As asyncio.to_thread, but the thread has ended when this returns or raises, whatever happens."""
    inside = partial(copy_context().run, call, *arguments, **named)
    return await to_the_end(asyncio.get_running_loop().run_in_executor(None, inside))
