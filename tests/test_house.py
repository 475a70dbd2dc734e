"""The house's rules that a machine can check: a function fits a screen."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ssl_vit

PACKAGE = Path(ssl_vit.__file__).parent
MOST = 40  # lines of a function's body, its docstring not counted


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


def lines(function: ast.FunctionDef) -> int:
    """Lines from the first statement behind the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_a_function_fits_a_screen() -> None:
    found = [(file, function) for file in sorted(PACKAGE.rglob("*.py")) for function in functions(file)]
    assert len(found) > 1000
    long = [
        f"{file.relative_to(PACKAGE)}: {function.name} has {lines(function)} lines"
        for file, function in found
        if lines(function) > MOST
    ]
    assert long == []
