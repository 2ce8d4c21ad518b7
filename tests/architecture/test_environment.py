"""One place reads the environment, one place holds SQL."""

from __future__ import annotations

import ast
import re

from tests.architecture.tree import PACKAGES, modules, parsed

ENVIRONMENT = {
    "api/settings.py": "the settings themselves (by pydantic-settings)",
    "bus/installation.py": "Bus.connect() in somebody else's program, where no Settings object exists",
    "api/demo.py": "passes its own environment on to the `storebus up` and the command that it starts as children",
}
"""Who may touch os.environ, and why."""

SQL = {
    "bus/postgres_server.py": "creates the database of the embedded server, before any file could be run in it",
    "bus/read_model.py": "calls the functions of schema/sql/projections by name, and SET ROLE of its connections",
    "agents/journal.py": "the agent's journal is SQLite, private to its file, and the product's SQL folder is Postgres'",
}
"""Who may hold SQL in Python, and why. The statements of the log and of the read tables are files of schema/sql/."""

STATEMENT = re.compile(r"\s*(SELECT\b.+|INSERT\s+INTO\b|UPDATE\s+\w+.*\sSET\b|DELETE\s+FROM\b|"
                       r"CREATE\s+(TABLE|DATABASE|ROLE|INDEX|SCHEMA|VIEW|FUNCTION|UNLOGGED)\b|ALTER\s+(TABLE|ROLE|DATABASE)\b|DROP\s+(TABLE|SCHEMA|DATABASE)\b|"
                       r"TRUNCATE\b|LISTEN\b|SET\s+(LOCAL|ROLE)\b|BEGIN\b|WITH\s+\w+\s+AS\b)", re.DOTALL)


def reads_environment(tree: ast.Module) -> bool:
    """Whether it names os.environ or os.getenv, under any way of importing them."""
    names = {"environ", "getenv", "environb", "getenvb", "putenv"}
    return any((isinstance(node, ast.Attribute) and node.attr in names and isinstance(node.value, ast.Name)
                and node.value.id == "os")
               or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {each.name for each in node.names})
               for node in ast.walk(tree))


def statements(tree: ast.Module) -> list[str]:
    """Strings that are SQL, docstrings apart."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [node.value[:60] for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
            and STATEMENT.match(node.value)]


def test_one_place_reads_the_environment() -> None:
    wrong = [str(path) for path in modules(*PACKAGES) if str(path) not in ENVIRONMENT and reads_environment(parsed(path))]
    assert not wrong, f"{wrong} read the environment: take a Settings field instead"


def test_sql_lives_in_sql_files() -> None:
    wrong = {str(path): found for path in modules(*PACKAGES) if str(path) not in SQL and (found := statements(parsed(path)))}
    assert not wrong, f"move these to schema/sql: {wrong}"


def test_no_exception_outlives_its_reason() -> None:
    known = {str(path): parsed(path) for path in modules(*PACKAGES)}
    assert not [path for path in ENVIRONMENT if path != "api/settings.py" and not reads_environment(known[path])]
    assert not [path for path in SQL if not statements(known[path])]


def test_the_eyes_see() -> None:
    assert reads_environment(ast.parse("import os\nx = os.environ['A']"))
    assert reads_environment(ast.parse("from os import getenv"))
    assert not reads_environment(ast.parse("x = settings.environ"))
    assert statements(ast.parse("q = 'SELECT 1 FROM t'")) == ["SELECT 1 FROM t"]
    assert statements(ast.parse("q = f'INSERT INTO {t} VALUES'"))
    assert not statements(ast.parse("'SELECT 1'\nx = 'Update the volume'"))
