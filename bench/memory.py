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


def high_water(root: int) -> tuple[int, int]:
    """VmHWM, bytes, of a process, and the sum of all below it."""
    total, queue, own = 0, [root], 0
    while queue:
        pid = queue.pop()
        with contextlib.suppress(OSError, ValueError, IndexError):
            size = int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) << 10
            own, total = (size, total) if pid == root else (own, total + size)
            for task in Path(f"/proc/{pid}/task").iterdir():
                queue += map(int, (task / "children").read_text().split())
    return own, total


async def _watch(mover: Mover, peaks: list[tuple[int, int]]) -> None:
    while True:
        if mover.pid:
            peaks.append(high_water(mover.pid))
        await asyncio.sleep(0.05)


async def run(side: Side) -> Result:
    """Four backups of 512 MiB at once, plain; then four with zstd; the larger of the two counts."""
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", AGENT, stdout=asyncio.subprocess.PIPE)
    found: dict[str, float] = {}
    parts: list[str] = []
    try:
        assert agent.stdout is not None
        await agent.stdout.readline()
        alone, _ = high_water(agent.pid)
        for name in ("plain", "zstd"):
            async with Site(side, half=True) as site:
                peaks: list[tuple[int, int]] = []
                watching = asyncio.create_task(_watch(site.mover, peaks))
                await asyncio.gather(*(site.backup("" if name == "plain" else name) for _ in range(TRANSFERS)))
                watching.cancel()
                own, below = max(peaks, key=sum)
                found[name] = (alone + own + below) / (1 << 20)
                parts.append(f"{name} {found[name]:.0f} MB: mover {own >> 20}, qemu's programs {below >> 20}")
            await side.clean()
    finally:
        agent.kill()
        await agent.communicate()
    return Result(f"{TRANSFERS} parallel transfers: agent and children under {MOST_MB:.0f} MB", "MB", [max(found.values())], [MOST_MB],
                  "the bound", 1.0, 1.0, higher_is_better=False, notes=[
                      "; ".join(parts)
                      + f"; {alone / (1 << 20):.0f} MB of each are the agent's own process"])
