"""The arrows: schema <- bus <- {handlers, agents} <- api. import-linter proves them; here it is proved to be asked."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import schema
from api.registry import COMMANDS
from handlers.table import EVOLVE, FLOWS
from schema.job import CancelJob
from schema.message import Command, Event
from tests.architecture.tree import PACKAGES, ROOT, modules, parsed

REGISTRY = schema.vocabulary()
LAYER = {"schema": 0, "bus": 1, "handlers": 2, "agents": 2, "api": 3}


def imported(tree: ast.Module) -> set[str]:
    """Top-level packages that a module imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_the_linter_keeps_every_contract(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_arrows_point_one_way() -> None:
    """Also without the linter, and also imports inside functions and under TYPE_CHECKING."""
    wrong = [f"{path} imports {name}" for path in modules(*PACKAGES) for name in sorted(imported(parsed(path)) & {*PACKAGES})
             if name != path.parts[0] and LAYER[name] >= LAYER[path.parts[0]]]
    wrong += [f"{path} imports tests" for path in modules(*PACKAGES) if imported(parsed(path)) & {"tests", "bench"}]
    assert not wrong, wrong


@pytest.mark.parametrize("package", ["schema", "handlers"])
def test_who_decides_touches_no_world(package: str) -> None:
    """Deciders and messages know no database, broker, socket or process; the runtime is given its store."""
    world = {"asyncpg", "aio_pika", "aiohttp", "socket", "subprocess", "sqlite3", "requests", "starlette"}
    wrong = {str(path): sorted(found) for path in modules(package) if (found := imported(parsed(path)) & world)}
    assert not wrong


def test_the_vocabulary_is_all_of_it() -> None:
    """Whoever asks for all messages has those of every module, and a type checker knows the same nouns."""
    for path in modules("schema"):
        import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    assert {cls.__module__ for cls in REGISTRY.values() if cls.__module__.startswith("schema.")} <= {f"schema.{noun}" for noun in schema.NOUNS}
    named = [node for node in ast.walk(parsed(Path("schema/__init__.py"))) if isinstance(node, ast.ImportFrom) and node.module == "schema"]
    assert [alias.name for node in named for alias in node.names] == list(schema.NOUNS)
    assert set(schema.NOUNS) <= set(schema.__all__)


def test_a_message_is_known_by_its_name_alone() -> None:
    """A process that has loaded no noun reads every message."""
    code = ("import sys; from schema.codec import decode; nouns = [name for name in sys.modules if name == 'schema.volume']; "
            "print(nouns, type(decode('job.cancel', 1, b'{\"job_id\": \"7d2f9a10-4c1e-4b53-9a37-0c5f1e2d3b4a\"}')).__name__)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[] CancelJob\n"


def test_every_command_is_handled_exactly_once() -> None:
    """Each command of the vocabulary has one flow, but CancelJob, which is about another job."""
    commands = {cls for cls in REGISTRY.values() if issubclass(cls, Command) and cls.__module__.startswith("schema.")}
    assert set(FLOWS) == commands - {CancelJob}
    assert len({id(flow) for flow in FLOWS.values()}) == len(FLOWS), "two commands share a flow object"


def test_the_edge_knows_only_what_is_handled() -> None:
    edge = {each.command for each in COMMANDS if each.command is not None}
    assert edge <= {*FLOWS, CancelJob}
    assert len({each.name.lower() for each in COMMANDS}) == len(COMMANDS), "a command is registered twice"


def test_every_noun_with_events_has_a_fold() -> None:
    """A noun whose stream a decision reads has its evolve; agents only announce themselves."""
    announced = {"agent", "work"}
    nouns = {name.split(".")[0] for (name, _), cls in REGISTRY.items()
             if issubclass(cls, Event) and cls.__module__.startswith("schema.")}
    assert nouns - announced == set(EVOLVE)


def test_entry_points_can_be_imported() -> None:
    """What pyproject.toml promises is there, installed under the same names, and loads."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for group, points in {"console_scripts": project["scripts"], **project["entry-points"]}.items():
        installed = {point.name: point for point in entry_points(group=group)}
        for name, value in points.items():
            assert name in installed, f"{name} of {group} is not installed: run scripts/setup test"
            assert installed[name].value == value
            assert callable(installed[name].load())


def test_the_vocabulary_imports_little() -> None:
    """Whoever only wants the messages must not need the servers' libraries: schema is pydantic and the standard library."""
    allowed = {"pydantic", "pydantic_core", "schema", "__future__"} | set(sys.stdlib_module_names)
    wrong = {str(path): sorted(found) for path in modules("schema") if (found := imported(parsed(path)) - allowed)}
    assert not wrong, wrong
    assert schema.__doc__
