"""Small pieces with telling names: no module over 500 lines, no function over 70, nothing called utils."""

from __future__ import annotations

import ast

from tests.architecture.tree import CODE, PACKAGES, ROOT, modules, parsed

MODULE_LINES = 500
FUNCTION_LINES = 70
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "base_utils"}


def long_functions(tree: ast.Module) -> list[str]:
    """`name at line: length` of each function that is too long."""
    return [f"{node.name} at line {node.lineno}: {node.end_lineno - node.lineno + 1}" for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
            and node.end_lineno - node.lineno >= FUNCTION_LINES]


def test_a_module_fits_into_a_head() -> None:
    long = {str(path): count for path in modules(*CODE) if (count := (ROOT / path).read_text().count("\n")) > MODULE_LINES}
    assert not long, f"over {MODULE_LINES} lines, split them by what they own: {long}"


def test_a_function_fits_onto_a_screen() -> None:
    long = {str(path): found for path in modules(*CODE) if (found := long_functions(parsed(path)))}
    assert not long, f"over {FUNCTION_LINES} lines: {long}"


def test_names_say_what_is_inside() -> None:
    vague = [str(path) for path in modules(*CODE) if VAGUE & {*path.with_suffix("").parts}]
    assert not vague, f"name these after what they own: {vague}"


def test_a_module_says_what_it_owns() -> None:
    silent = [str(path) for path in modules(*PACKAGES)
              if (ROOT / path).read_text().strip() and not ast.get_docstring(parsed(path))]
    assert not silent, f"without a docstring: {silent}"


def test_a_long_function_is_seen() -> None:
    body = "\n".join(["def long():"] + ["    pass"] * FUNCTION_LINES)
    assert long_functions(ast.parse(body)) == [f"long at line 1: {FUNCTION_LINES + 1}"]
    assert not long_functions(ast.parse(body.removesuffix("\n    pass")))
