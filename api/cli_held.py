"""`storebus held` and `storebus dlq`: messages that could not be handled, and what an operator does about them.

Held messages wait in order behind the first of their key that failed; dead letters (no key) block nothing. Owns list,
show, redrive and discard. Refuses to judge: a redrive is the same handling as the first one.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

from api.cli_target import dsn
from api.output import Output
from api.settings import Settings
from bus.envelope import PREFIX, Envelope
from bus.event_store import EventStore, HeldMessage
from schema.failure import BadParameter

MOST = 10_000
HANDLED, FAILED, BEHIND = "handled", "failed again", "stays behind an earlier one"
REFUSED = "refused: a dead letter now"
COLUMNS = ("id", "key", "type", "attempts", "first_failed", "last_failed", "reason")


def shown(message: HeldMessage, *, body: bool = False) -> dict[str, Any]:
    """A held message as data. Its body may be anything: what is not JSON is shown as text, cut."""
    fields: dict[str, Any] = {
        "id": message.id, "key": message.key, "partition": message.partition, "source": message.source,
        "type": message.headers.get(f"{PREFIX}type") or message.headers.get("cloudEvents:type", ""), "attempts": message.attempts,
        "first_failed": message.first_failed.isoformat(), "last_failed": message.last_failed.isoformat(),
        "reason": message.reason}
    if body:
        fields["headers"] = dict(message.headers)
        try:
            fields["body"] = json.loads(message.body)
        except ValueError:
            fields["body"] = message.body[:4096].decode("utf-8", "backslashreplace")
    return fields


async def find(store: EventStore, *, dead: bool, id: int | None = None,  # noqa: A002 - the option's name
               key: str | None = None) -> list[HeldMessage]:
    """Held messages, or dead letters; one, of one key, or all. Raises BadParameter when the one is not there."""
    every = await store.held(key="" if dead else key, limit=MOST)
    chosen = [each for each in every if (each.key == "") == dead and id in (None, each.id) and key in (None, each.key)]
    if id is not None and not chosen:
        raise BadParameter(f"nothing {'dead' if dead else 'held'} has the number {id}", field="id",
                           remedy=f"storebus {'dlq' if dead else 'held'} lists them")
    return chosen


async def run(settings: Settings, action: str, output: Output, *, dead: bool, id: int | None = None,  # noqa: A002
              key: str | None = None, every: bool = False, dry_run: bool = False) -> int:
    """list, show, redrive or discard; the exit status."""
    from api.bootstrap import open_system

    if action in ("redrive", "discard") and id is None and key is None and not every:
        raise BadParameter("say which: a number, --key or --all", field="id")
    async with open_system(settings, await asyncio.to_thread(dsn, settings)) as system:
        chosen = await find(system.store, dead=dead, id=id, key=key)
        match action:
            case "list":
                output.rows([shown(each) for each in chosen], COLUMNS)
            case "show":
                output.object(shown(chosen[0], body=True))
            case "discard":
                for each in chosen if not dry_run else []:
                    await system.store.drop_held(each.id)
                output.rows([{"id": each.id, "key": each.key, "outcome": "would be discarded" if dry_run else "discarded"}
                             for each in chosen])
            case _:
                return await _redrive(system, chosen, output, dry_run=dry_run)
    return 0


def _trusted(message: HeldMessage) -> HeldMessage:
    """What never passed the forwarder runs in the operator's name: who sent it is only what the sender claims."""
    if message.source != "commands":
        return message
    headers = {name: value for name, value in message.headers.items()
               if not name.lower().endswith(("sbprincipal", "sbtenant", "sbkind", "sbkey"))}
    return replace(message, headers={**headers, f"{PREFIX}sbprincipal": "operator"})


async def _redrive(system: Any, chosen: list[HeldMessage], output: Output, *, dry_run: bool) -> int:
    """Handle them again, in order; after a failure the later ones of the same key stay held. 1 when not all were handled."""
    rows, failed, refused = [], set(), False
    for message in chosen:
        if dry_run:
            outcome = "would be redriven"
        elif message.key and message.key in failed:
            outcome = BEHIND
        else:
            outcome = await _once_more(system, message)
            refused = refused or outcome == REFUSED
            if outcome == FAILED:
                failed.add(message.key)
        rows.append({"id": message.id, "key": message.key, "outcome": outcome})
    output.rows(rows)
    return 1 if failed or refused else 0


async def _once_more(system: Any, message: HeldMessage) -> str:
    """Redrive one; its outcome. What is refused is no longer held either, so only a handling that ended counts as one."""
    from bus.consumer import redrive

    handled = False

    async def handle(envelope: Envelope) -> None:
        nonlocal handled
        await system.runtime.handle(envelope)
        handled = True

    if not await redrive(system.store, handle, _trusted(message)):
        return FAILED
    return HANDLED if handled else REFUSED


__all__ = ["find", "run", "shown"]
