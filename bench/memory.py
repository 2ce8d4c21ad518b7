"""How much memory an agent and its children take with four transfers at once: backups to S3 through the mover as shipped.

Owns the counting: of every process its peak of resident memory (VmHWM), added up over those that live at the same time, which is
more than was ever resident at once, and counts what they share as often. The agent's own process does not move bytes: one that has
loaded the same and waits stands for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from agents.mover import Mover
from bench.backup import Site
from bench.measure import Result
from bench.sides import Side

TRANSFERS, MOST_MB = 4, 300.0
AGENT = "import uvloop, api.roles, time; print('ready', flush=True); time.sleep(600)"


def high_water(root: int) -> int:
    """The sum of VmHWM, bytes, of a process and all below it."""
    total, queue = 0, [root]
    while queue:
        pid = queue.pop()
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) << 10
            for task in Path(f"/proc/{pid}/task").iterdir():
                queue += map(int, (task / "children").read_text().split())
    return total


async def _watch(mover: Mover, peaks: list[int]) -> None:
    while True:
        if mover.pid:
            peaks.append(high_water(mover.pid))
        await asyncio.sleep(0.05)


async def run(side: Side) -> Result:
    """Four backups of 512 MiB at once, plain; then four with zstd; the larger of the two counts."""
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", AGENT, stdout=asyncio.subprocess.PIPE)
    found: dict[str, float] = {}
    try:
        assert agent.stdout is not None
        await agent.stdout.readline()
        alone = high_water(agent.pid)
        for name in ("plain", "zstd"):
            async with Site(side, half=True) as site:
                peaks: list[int] = []
                watching = asyncio.create_task(_watch(site.mover, peaks))
                await asyncio.gather(*(site.backup("" if name == "plain" else name) for _ in range(TRANSFERS)))
                watching.cancel()
                found[name] = (alone + max(peaks)) / (1 << 20)
            await side.clean()
    finally:
        agent.kill()
        await agent.communicate()
    return Result(f"{TRANSFERS} parallel transfers: agent and children under {MOST_MB:.0f} MB", "MB", [max(found.values())], [MOST_MB],
                  "the bound", 1.0, 1.0, higher_is_better=False, notes=[
                      ", ".join(f"{name} {size:.0f} MB" for name, size in found.items())
                      + f"; {alone / (1 << 20):.0f} MB of each are the agent's own process"])
