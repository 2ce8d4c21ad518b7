"""No other path moves bytes: whoever imports or calls what moves them is part of agents.motion, or is named here with why.

import-linter holds the same of the modules that pyproject.toml lists; here a module that nobody listed is found too.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from agents.motion.registry import MOTIONS, announced
from handlers.carriers import BEFORE_PLANS
from schema.motion import BACKUP, COPY, FETCH, MERGE, RESTORE, SEED
from tests.architecture.tree import PACKAGES, ROOT, modules, parsed

OPEN = {"agents.motion", "agents.motion.base", "agents.motion.registry"}
"""Of agents.motion, what others may import: what a motion is, and which there are."""
WAYS = {"agents.download", "agents.libnbd"} | {
    ".".join(path.with_suffix("").parts) for path in modules("agents")
    if (path.parts[:2] == ("agents", "motion") or path.stem.endswith("_upload"))} - OPEN - {"agents.motion.__init__"}
MAY_IMPORT = ("agents/motion/", "agents/download.py")
OWN: dict[str, str] = {"agents.libnbd": "agents/hypervisors/"} | {way: "agents/image_stores/" for way in WAYS if way.endswith("_upload")}
"""A plug-in's own way of moving bytes is imported by plug-ins of its kind."""
CALLS = {
    "part": ("agents/motion/", "agents/image_stores/", "agents/download.py", "agents/throttle.py"),
    "begin": ("agents/motion/", "agents/image_stores/", "agents/download.py", "agents/throttle.py"),
    "resume": ("agents/motion/", "agents/image_stores/", "agents/download.py", "agents/throttle.py"),
    "copy_file_range": ("agents/motion/",),
    "read_into": ("agents/motion/", "agents/hypervisors/", "agents/image_stores/", "agents/throttle.py"),
    "read_here": ("agents/motion/", "agents/hypervisors/"),
    "lent": ("agents/image_stores/",),
    "slices": ("agents/image_stores/", "agents/throttle.py"),
}
"""Method that only moves image bytes -> who calls it: motions, the plug-ins within themselves (a store's test of itself), and the
limit on throughput, which hands on a motion's own calls when they are due."""


def imports_of(tree: ast.Module) -> set[str]:
    """Dotted names of every module that is imported anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def calls_of(tree: ast.Module) -> set[str]:
    """Methods of CALLS that it calls. `begin` and `resume` are an upload's when they are told a part size."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
            sized = any(keyword.arg == "part_size" for keyword in node.keywords)
            if node.func.attr not in ("begin", "resume") or sized:
                found.add(node.func.attr)
    return found


def strangers(path: Path, tree: ast.Module) -> list[str]:
    """What a module imports or calls, and may not."""
    name = path.as_posix()
    wrong = [f"{name} imports {way}" for way in sorted(imports_of(tree) & WAYS)
             if not name.startswith(OWN.get(way, MAY_IMPORT))]
    return wrong + [f"{name} calls .{call}()" for call in sorted(calls_of(tree)) if not name.startswith(CALLS[call])]


def test_no_other_path_moves_bytes() -> None:
    wrong = [line for path in modules(*PACKAGES) for line in strangers(path, parsed(path))]
    assert not wrong, f"{wrong}: a new way of moving bytes is a strategy in agents/motion, found by its registry"


@pytest.mark.parametrize(("name", "text"), [
    ("agents/operations.py", "from agents.motion.direct import write_image"),
    ("agents/operations.py", "from agents.download import fetch"),
    ("agents/operations.py", "from agents.motion import delta"),
    ("api/demo.py", "def f():\n    import agents.libnbd"),
    ("agents/scrubbing.py", "from agents.image_stores.s3_upload import S3Upload"),
    ("agents/motion/other.py", "import agents.libnbd\nimport agents.image_stores.s3_upload"),
    ("agents/scrubbing.py", "async def f(store):\n    return await store.begin('k', part_size=5)"),
    ("handlers/volume.py", "async def f(upload, data):\n    await upload.part(1, data)"),
    ("agents/scrubbing.py", "def f(device, view):\n    device.read_here(view, 0)"),
    ("agents/operations.py", "async def f(store):\n    return await store.resume('k', part_size=5)"),
])
def test_the_contract_sees_another_path(name: str, text: str) -> None:
    assert strangers(Path(name), ast.parse(text))


@pytest.mark.parametrize("text", ["board.begin(order, 1.0)", "from agents.motion.base import Progress", "await_it.resume()"])
def test_the_contract_sees_no_ghosts(text: str) -> None:
    assert not strangers(Path("agents/operations.py"), ast.parse(text))


def test_the_linter_protects_every_way() -> None:
    """The list in pyproject.toml is complete, so `make check` alone says the same."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    protected = {name for each in contracts if each["type"] == "protected" for name in each["protected_modules"]}
    assert protected >= WAYS
    assert protected - WAYS == {"agents.motion.registry"}


# --- what the registry and the planner say to each other ---------------------------------------------------------------


def test_what_is_announced_is_carried() -> None:
    """Names are unique, each move is carried by whoever announces it, and every move of this version by somebody."""
    for disks in (False, True):
        for spec in announced(disks=disks):
            motion = MOTIONS[spec.name]
            assert motion.name == spec.name
            assert set(spec.moves) <= set(motion.moves)
            assert all(("disk" in move) is disks for move in spec.moves)
            assert spec.rate > 0
            assert spec.passes > 0 or set(spec.moves) == {SEED}, "what comes from elsewhere crosses the network"
            assert spec.start >= 0
    every = {move for disks in (False, True) for spec in announced(disks=disks) for move in spec.moves}
    assert every == {move for motion in MOTIONS.values() for move in motion.moves}
    assert every <= {FETCH, BACKUP, RESTORE, COPY, MERGE, SEED}


def test_an_agent_of_before_there_were_plans_is_taken_for_what_it_was() -> None:
    direct = MOTIONS["direct"]
    assert (set(BEFORE_PLANS.moves), BEFORE_PLANS.reads, BEFORE_PLANS.writes) == (
        set(direct.moves), list(direct.reads), list(direct.writes))
