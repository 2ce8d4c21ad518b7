"""`storebus plan`: how the bytes of a command would move, asked of the API; nothing is done.

Owns what a plan looks like in a terminal. Refuses to plan: that is the handlers', with what they know at this moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from api.cli_call import arguments, connection
from api.output import Format, Output, size_text

COLUMNS = ("step", "choice", "strategy", "from", "to", "agent", "bytes", "seconds", "why")


async def plan(command: str, words: list[str], *, form: Format | None, url: str | None, profile: str | None,
               data_dir: Path | None) -> int:
    """Ask and print; the exit status. Raises what the API refuses the command with."""
    parameters = await asyncio.to_thread(arguments, words)
    output = Output(form)
    async with await connection(data_dir, url, profile) as client:
        body = await client.ask("planCommand", {**parameters, "of": command}, repeat=True)
    moves = body.get("plan", [])
    if not output.for_people:
        output.rows(moves)
    elif moves:
        output.rows([line for move in moves for line in lines(move)], COLUMNS)
    else:
        output.say(f"{command} moves no image bytes")
    return 0


def lines(move: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One move as lines of the table: what is chosen, then what was refused."""
    size = "unknown" if move["bytes"] is None else size_text(move["bytes"])
    seconds = "unknown" if move["seconds"] is None else f"about {move['seconds']}"
    yield {"step": move["step"], "choice": "chosen", "strategy": move["strategy"], "from": move["from"]["name"],
           "to": move["to"]["name"], "agent": move["agent"], "bytes": size, "seconds": seconds,
           "why": f"{move['reason']} (bytes: {move['basis']})" if move["basis"] else move["reason"]}
    for refused in move["refused"]:
        yield {"step": move["step"], "choice": "refused", "strategy": refused["strategy"], "why": refused["cause"]}


__all__ = ["lines", "plan"]
