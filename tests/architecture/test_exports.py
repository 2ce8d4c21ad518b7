"""`__all__`: where a module has one it is sorted, every name is there, and nothing private is offered."""

from __future__ import annotations

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

from tests.architecture.tree import PACKAGES, ROOT, modules, parsed, tracked


def exported(tree: ast.Module) -> list[str] | None:
    """The literal `__all__` of a module; None without one."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(at, ast.Name) and at.id == "__all__" for at in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def in_order(names: list[str]) -> list[str]:
    """As ruff sorts them: CONSTANTS, then Classes, then functions."""
    return sorted(names, key=lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name))


WITH_ALL = [path for path in modules(*PACKAGES) if exported(parsed(path)) is not None]


@pytest.mark.parametrize("path", WITH_ALL, ids=str)
def test_exports_are_true_and_sorted(path: Path) -> None:
    names = exported(parsed(path)) or []
    assert names == in_order(names), f"{path}: __all__ is not sorted"
    assert len(names) == len(set(names)), f"{path}: a name twice"
    assert not [name for name in names if name.startswith("_")], f"{path}: a private name in __all__"
    dotted = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(dotted)
    assert not [name for name in names if not hasattr(module, name)], f"{path}: names that are not there"


def test_somebody_says_what_is_public() -> None:
    assert len(WITH_ALL) >= 10


def test_an_installed_package_has_every_file() -> None:
    """SQL, migration lists, golden files: what a module reads beside itself must be in the wheel too."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    carried = {path.relative_to(ROOT) for package, globs in data.items() for glob in globs for path in (ROOT / package).glob(glob)}
    left = [str(path) for path in tracked() if path.parts[0] in PACKAGES and path.suffix != ".py" and path not in carried]
    assert not left, f"name these in package-data of pyproject.toml: {left}"
