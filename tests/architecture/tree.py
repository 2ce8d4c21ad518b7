"""The tree as the architecture tests read it: tracked files only, so that nobody's leftovers count."""

from __future__ import annotations

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("schema", "bus", "handlers", "agents", "api")
CODE = (*PACKAGES, "tests", "bench")


@functools.cache
def tracked() -> tuple[Path, ...]:
    """Every tracked file that is there, relative to the root; outside a clone, every file that is not hidden or built."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        found = [Path(name) for name in listed.stdout.split("\0") if name]
    else:
        found = [path.relative_to(ROOT) for path in ROOT.rglob("*")
                 if not {part for part in path.relative_to(ROOT).parts if part.startswith(".") or part == "__pycache__"}]
    return tuple(sorted(path for path in found if (ROOT / path).is_file()))


def modules(*packages: str) -> list[Path]:
    """The tracked Python files below these top-level folders."""
    return [path for path in tracked() if path.suffix == ".py" and path.parts[0] in packages]


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a tracked file."""
    return ast.parse((ROOT / path).read_text(), str(path))
