"""How much memory an agent and its children take with four transfers at once: backups to S3 through the mover as shipped.

Owns the counting: the resident memory (RSS) of the agent's process and of every process below it, added up at one moment as whoever
watches a machine adds it up, and of all moments the largest sum. Pages that processes share count once in each; PSS, told beside,
counts them once. The agent's own process does not move bytes: one that has loaded the same and waits stands for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from agents.mover import Mover
from bench.backup import Site
from bench.measure import Result
from bench.sides import Side

TRANSFERS, MOST_MB, PSS_EVERY = 4, 300.0, 10
AGENT = "import uvloop, api.cli, api.agent_role, bus.transport_rabbit, time; print('ready', flush=True); time.sleep(600)"


def resident(pid: int) -> int:
    """RSS of one process, bytes; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def shared_out(pid: int) -> int:
    """PSS of one process, bytes; 0 when it is gone. Costs the kernel a walk over all its pages."""
    try:
        return int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("\nPss:")[1].split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return 0


def below(root: int) -> list[int]:
    """The processes under one, itself not among them."""
    found, queue = [], [root]
    while queue:
        with contextlib.suppress(OSError, ValueError):
            for task in Path(f"/proc/{queue.pop()}/task").iterdir():
                children = [int(child) for child in (task / "children").read_text().split()]
                found += children
                queue += children
    return found


@dataclass
class Moment:
    """What was resident at one moment, bytes: the agent's process, the mover, the programs below it; and PSS of all, if asked for."""

    agent: int
    mover: int
    programs: int
    pss: int = 0

    @property
    def rss(self) -> int:
        return self.agent + self.mover + self.programs


async def _watch(agent: int, mover: Mover, moments: list[Moment]) -> None:
    for turn in itertools.count():
        if mover.pid:
            programs = below(mover.pid)
            pss = sum(map(shared_out, [agent, mover.pid, *programs])) if turn % PSS_EVERY == 0 else 0
            moments.append(Moment(resident(agent), resident(mover.pid), sum(map(resident, programs)), pss))
        await asyncio.sleep(0.05)


async def run(side: Side) -> Result:
    """Four backups of 512 MiB at once, plain; then four with zstd; the larger of the two counts."""
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", AGENT, stdout=asyncio.subprocess.PIPE)
    found: dict[str, float] = {}
    parts: list[str] = []
    try:
        assert agent.stdout is not None
        await agent.stdout.readline()
        for name in ("plain", "zstd"):
            async with Site(side, half=True) as site:
                moments: list[Moment] = []
                watching = asyncio.create_task(_watch(agent.pid, site.mover, moments))
                await asyncio.gather(*(site.backup("" if name == "plain" else name) for _ in range(TRANSFERS)))
                watching.cancel()
                top = max(moments, key=lambda moment: moment.rss)
                found[name] = top.rss / (1 << 20)
                parts.append(f"{name} {found[name]:.0f} MB: agent {top.agent >> 20}, mover {top.mover >> 20}, "
                             f"qemu's programs {top.programs >> 20}; PSS {max(moment.pss for moment in moments) >> 20}")
            await side.clean()
    finally:
        agent.kill()
        await agent.communicate()
    return Result(f"{TRANSFERS} parallel transfers: agent and children under {MOST_MB:.0f} MB", "MB", [max(found.values())], [MOST_MB],
                  "the bound", 1.0, 1.0, higher_is_better=False, notes=["; ".join(parts)])
