"""What a line of `storebus` may go on with: commands, options, parameters, their values, and the ids of things with their names.

Owns the words. Refuses to wait: an API that does not answer within ASK_S, or refuses, offers no ids, and nothing is said. Rule:
nothing is asked of the API but lists.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api import profiles, registry
from api.api_command import ApiCommand, Parameter, Type
from api.cli_target import settings, target
from api.client.connection import Connection
from api.output import plain
from api.related import lister, table_of
from schema.failure import Failed, Unsupported

ASK_S = 1.5
MOST = 200
"""Things that are offered."""
CALLS = frozenset({"call", "plan", "publish"})
"""Commands whose words are an API command and its parameters."""
NAMED = {"provider": ("listStorageProviders", {"type": "image"}, "name"), "account": ("listAccounts", {}, "name")}
"""Parameters whose value is a name: the list that has it, and its field."""
ASKED = {"listTemplates": {"templatefilter": "executable"}, "listIsos": {"isofilter": "executable"},
         "listStorageProviders": {"type": "image"}}
"""What a list must be given."""
FIXED = {"--output": ("table", "json", "jsonl", "yaml"), "-o": ("table", "json", "jsonl", "yaml"), "--role": ("storage", "kvm")}
"""Values of options."""
WORDS = {"serve": ("api", "handlers", "log", "agent"), "completion": ("bash", "zsh", "fish")}
"""Values of arguments."""
THING = {"scrub": "image_store", "chain": "snapshot", "jobs": "job"}
"""Commands whose argument is the id of a thing of this table."""


@dataclass(frozen=True, slots=True)
class Word:
    """One way to go on."""

    value: str
    help: str = ""
    open: bool = False
    """More of the same word follows."""


def split(line: str) -> list[str]:
    """The words of a line, the last one unfinished (empty behind a space). Quotes may be open."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:
        words.append(lexer.token)
    if not line or line[-1].isspace():
        words.append("")
    return words


def words(line: str) -> list[Word]:
    """What may stand in place of the last word of `line`, which begins with the program's name."""
    import typer.main

    from api.cli import app

    *before, last = split(line)[1:] or [""]
    command: Any = typer.main.get_command(app)
    rest: list[str] = []
    path: list[str] = []
    for word in before:
        found = getattr(command, "commands", {}).get(word) if not word.startswith("-") else None
        if found is not None and not rest:
            command = found
            path.append(word)
        else:
            rest.append(word)
    options = {name: each for each in command.params if each.opts[0].startswith("-") for name in each.opts}
    if rest and rest[-1] in options and not options[rest[-1]].is_flag:
        return _begin(_option(rest[-1]), last)
    if last.startswith("-"):
        return _begin((Word(name, _line(each.help)) for name, each in options.items() if not each.hidden), last)
    if hasattr(command, "commands"):
        return _begin((Word(name, _line(each.help)) for name, each in command.commands.items() if not each.hidden), last)
    return _begin(_arguments(path, _plain(rest, options), last, before), last)


def _line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]


def _plain(rest: Iterable[str], options: dict[str, Any]) -> list[str]:
    """The words that are no options and no options' values."""
    kept, value = [], False
    for word in rest:
        if value:
            value = False
        elif word.startswith("-"):
            value = "=" not in word and word in options and not options[word].is_flag
        else:
            kept.append(word)
    return kept


def _begin(found: Iterable[Word], last: str) -> list[Word]:
    return [each for each in found if each.value.lower().startswith(last.lower())]


def _option(name: str) -> Iterator[Word]:
    if name == "--profile":
        yield from _profiles()
    yield from (Word(value) for value in FIXED.get(name, ()))


def _profiles() -> Iterator[Word]:
    found = profiles.read(settings().config_dir)
    yield from (Word(name, each.url) for name, each in sorted(found.profiles.items()))


def _arguments(path: list[str], given: list[str], last: str, line: list[str]) -> Iterator[Word]:
    name = path[-1] if path else ""
    if name in CALLS:
        yield from _call(name, given, last, line)
    elif path[:1] == ["profile"] and name in ("use", "remove") and not given:
        yield from _profiles()
    elif not given:
        yield from (Word(value) for value in WORDS.get(name, ()))
        if name in THING:
            yield from _things(THING[name], line)


# --- calls ------------------------------------------------------------------------------------------------------------


def _call(name: str, given: list[str], last: str, line: list[str]) -> Iterator[Word]:
    if not given:
        for each in registry.COMMANDS:
            if name == "call" or each.command is not None:
                yield Word(each.name, each.description)
        return
    try:
        command = registry.find(given[0])
    except Unsupported:
        return
    spelled, equals, value = last.partition("=")
    if equals:
        parameter = command.parameter(spelled.lower())
        if parameter is not None:
            head, comma, _ = value.rpartition(",") if parameter.type is Type.LIST else ("", "", "")
            yield from (Word(f"{spelled}={head}{comma}{each.value}", each.help) for each in _values(command, parameter, line))
        return
    there = {word.partition("=")[0].lower() for word in given[1:]}
    for parameter in sorted(command.parameters, key=lambda each: not each.required):
        if parameter.name not in there:
            text = f"required: {parameter.description}" if parameter.required else parameter.description
            yield Word(f"{parameter.name}{'.' if parameter.type is Type.MAP else '='}", text, open=True)


def _values(command: ApiCommand, parameter: Parameter, line: list[str]) -> Iterator[Word]:
    if parameter.choices:
        yield from (Word(each) for each in parameter.choices)
    elif parameter.type is Type.BOOLEAN:
        yield from (Word("true"), Word("false"))
    elif parameter.name == "of":
        yield from (Word(each.name, each.description) for each in registry.COMMANDS if each.command is not None)
    elif parameter.name in NAMED:
        name, asked, field = NAMED[parameter.name]
        yield from (Word(str(each[field])) for each in _ask(registry.find(name), asked, line) if each.get(field))
    elif parameter.type is Type.UUID or parameter.of_uuids or parameter.name in ("zoneids", "jobid"):
        yield from _things(table_of(command, parameter.name), line)


def _things(table: str, line: list[str]) -> Iterator[Word]:
    """The things of a table: their ids, with their names."""
    found = lister(table)
    if found is None:
        return
    for each in _ask(found, {}, line):
        thing_id = each.get("id") or each.get("jobid")
        if thing_id:
            text = each.get("name") or each.get("username") or each.get("displaytext") or each.get("cmd") or ""
            yield Word(str(thing_id), " ".join(str(part) for part in (text, each.get("state") or "") if part))


def _ask(asked_of: ApiCommand, asked: dict[str, str], line: list[str]) -> list[dict[str, Any]]:
    """The first page of a list; nothing from an API that is away, slow, or of another mind."""
    given = {**ASKED.get(asked_of.name, {}), **asked}
    if asked_of.parameter("pagesize") is not None:
        given |= {"page": "1", "pagesize": str(MOST)}
    if asked_of.parameter("listall") is not None:
        given["listall"] = "true"

    async def ask() -> dict[str, Any]:
        data_dir = _given(line, "--data-dir")
        where = target(settings(data_dir=Path(data_dir) if data_dir else None), url=_given(line, "--api-url"),
                       profile=_given(line, "--profile"))
        async with asyncio.timeout(ASK_S), Connection(where, timeout_s=ASK_S, patience_s=0) as connection:
            return await connection.ask(asked_of.name, given)

    try:
        return list(asyncio.run(ask()).get(asked_of.item, []))[:MOST]
    except (Failed, TimeoutError, OSError):
        return []


def _given(line: list[str], option: str) -> str | None:
    """The value of an option on the line."""
    for number, word in enumerate(line):
        if word == option and number + 1 < len(line):
            return line[number + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


# --- for shells -------------------------------------------------------------------------------------------------------


def answer(shell: str, line: str, *, several: bool = True) -> str:
    """The words as the script of a shell takes them, a line each; empty when anything is wrong: a shell has no use for errors.

    bash: what stands behind the last `=`, for bash begins a word there; with help when there are several, for then bash only
    shows them (`several` false: it would take one by one). zsh and fish: value, tab, help."""
    try:
        found = words(line)
    except Exception:
        return ""
    if shell != "bash":
        return "".join(f"{each.value}\t{plain(each.help)[:100]}\n" for each in found)
    last = split(line)[-1]
    cut = len(last.rpartition("=")[0]) + 1 if "=" in last else 0
    many = several and len(found) > 1
    return "".join(f"{each.value[cut:]}{f'  ({plain(each.help)[:60]})' if many and each.help else '' if each.open else ' '}\n"
                   for each in found)


__all__ = ["Word", "answer", "split", "words"]
