"""Node.js and the packages that scripts/setup puts beside our virtual environment. Owns where they are; refuses to know any client."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

INSTALL = "run: scripts/setup test"
GIVEN = "STOREBUS_TEST_NODE_MODULES"
"""Variable: a folder node_modules that has the packages."""


class NodeMissing(Exception):
    """It is not here; the text has the line that installs it."""


def find_node(package: str) -> tuple[str, Path]:
    """(the program, the folder of the packages). Raises NodeMissing."""
    program = shutil.which("node")
    if program is None:
        raise NodeMissing("node: apt-get install nodejs npm")
    given = os.environ.get(GIVEN)
    modules = Path(given) if given else Path(sys.prefix) / "node" / "node_modules"
    if not (modules / package).is_dir():
        raise NodeMissing(f"the npm package {package}: {INSTALL}")
    return program, modules
