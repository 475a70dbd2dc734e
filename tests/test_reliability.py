"""Every promise of docs/reliability.md has a test, and the test is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", (ROOT / "docs/reliability.md").read_text(), re.MULTILINE)


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_the_table_is_whole() -> None:
    assert [int(number) for number, *_ in ROWS] == [*range(1, 42)]


def test_every_row_names_tests_that_exist() -> None:
    for number, fault, _, tests in ROWS:
        named = re.findall(r"`(\S+?)::(\w+)`", tests)
        assert named, f"row {number}: {fault}"
        for file, function in named:
            assert (ROOT / file).is_file(), f"row {number}: {file}"
            assert function in functions(ROOT / file), f"row {number}: {file}::{function}"
