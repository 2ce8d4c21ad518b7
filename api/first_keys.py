"""The first admin's keys: made when an installation with identity starts, and left where only its owner reads them.

Owns the file `admin.keys` of the data directory and how a client reads it. Refuses to print or log a key.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from api.credentials import new_key
from api.process import private_file
from schema.identity import ROOT_USER, RegisterUserKeys
from schema.ids import derive, stream

if TYPE_CHECKING:
    from bus.vault import Vault
    from handlers.runtime import Runtime

log = logging.getLogger(__name__)

FILE = "admin.keys"


def _fresh() -> str:
    return json.dumps({"apikey": new_key(), "secretkey": new_key()}) + "\n"


async def first_keys(runtime: Runtime, vault: Vault, data_dir: Path) -> None:
    """Give the admin of ROOT the keys in the data directory's file, made at first, unless it has keys already.

    The file comes first: a process that dies between the two finds it again and registers the same keys."""
    from handlers.founding import found  # whoever only reads the keys, as each run of the command line, loads no handlers

    await found(runtime)
    if len(await runtime.store.read_stream(stream("user", ROOT_USER), limit=2)) > 1:
        return
    keys = json.loads(await asyncio.to_thread(private_file, data_dir / FILE, _fresh))
    job_id = derive(ROOT_USER, f"first-keys/{keys['apikey']}")
    secret = await vault.seal(keys["secretkey"], name=f"{job_id}/secret_key")
    await runtime.run_now(RegisterUserKeys(id=ROOT_USER, api_key=keys["apikey"], secret_key=secret), job_id, "system")
    log.warning("the first admin's keys are in %s", data_dir / FILE, extra={"action": "first_keys"})


def read_keys(data_dir: Path) -> tuple[str, str] | None:
    """(API key, secret key) of the file, where there is one and this user may read it. Blocks for a file."""
    try:
        keys = json.loads((data_dir / FILE).read_text())
        return str(keys["apikey"]), str(keys["secretkey"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


__all__ = ["FILE", "first_keys", "read_keys"]
