"""Clear secrets in a command: found by the names of fields, and replaced by vault references before anything is sent.

Owns which names mean a secret and the replacement. Refuses to know any command: the schema of a provider's settings,
which handlers check again, is the exact rule; this one is the net that lies before the log and the broker.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from schema.failure import BadParameter, Denied
from schema.message import Command, Secret

Seal = Callable[..., Awaitable[str]]
"""`seal(value, name=...)` -> `vault:<uuid>`, as `bus.vault.Vault.seal`."""
PLAIN = frozenset({"tags"})
"""Maps whose values are there to be shown, whatever they are called."""
NAMES = re.compile(r"(secret|passw|passphrase|token|credential|private_?key|^(api|shared)?_?key$)", re.IGNORECASE)
"""Names of fields whose values are secret. `accesskey` names an account and is not; Swift's bare `key` is."""


def clear_secrets(body: dict[str, Any], own: tuple[str, ...] = ()) -> list[str]:
    """Dotted paths of the clear secrets in a command's JSON body; `own`: its fields that are secret, by their names."""
    return [".".join(path) for path, _ in _found(body, own)]


def _found(body: dict[str, Any], names: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    own = [((name,), body[name]) for name in names if body.get(name) and not Secret.is_reference(body[name])]
    return [*own, *_secrets(body, ())]


def _secrets(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _secrets(inner, (*path, str(name)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _secrets(inner, (*path, str(index)))
    elif isinstance(value, str) and value and not Secret.is_reference(value) and _names_a_secret(path):
        yield path, value


def _names_a_secret(path: tuple[str, ...]) -> bool:
    # Only inside maps: the fields of commands themselves are known, and `key` there is an object's name.
    return len(path) > 1 and path[0] not in PLAIN and NAMES.search(path[-1]) is not None


def refuse_password_in_url(body: dict[str, Any]) -> None:
    """Raises Denied for a URL with a password in it: the URL is kept for ever. Never repeats the URL."""
    for name, value in body.items():
        if isinstance(value, str) and "@" in value and "://" in value:
            try:
                password = urlsplit(value).password
            except ValueError:
                continue  # whoever needs the URL says what is wrong with it
            if password:
                raise Denied("the URL holds a password, and commands are kept for ever", field=name,
                             remedy="use a URL without one, e.g. a presigned one")


async def sealed(command: Command, seal: Seal | None, *, job_id: UUID) -> Command:
    """The command with every clear secret replaced by its reference; itself when there is none.

    Raises Denied, naming the field, when there is a clear secret and no vault to seal it in.
    """
    body = command.model_dump(mode="json", exclude_none=True)
    refuse_password_in_url(body)
    found = _found(body, command.SECRETS)
    if not found:
        return command
    for path, value in found:
        where = ".".join(path)
        if seal is None:
            raise Denied("a clear secret may not travel in a message", field=where,
                         remedy="send the command through the API, or give a vault reference (vault:<uuid>)")
        holder: Any = body
        for step in path[:-1]:
            holder = holder[int(step)] if isinstance(holder, list) else holder[step]
        holder[path[-1]] = await seal(value, name=f"{job_id}/{where}")
    try:
        return type(command).model_validate(body)
    except ValueError:
        raise BadParameter(f"{command.TYPE} takes no vault reference here", field=".".join(found[0][0])) from None


__all__ = ["Seal", "clear_secrets", "refuse_password_in_url", "sealed"]
