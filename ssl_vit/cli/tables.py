"""Rows become aligned text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import IO, Any


def aligned(rows: Sequence[dict[str, Any]], stream: IO[str]) -> str:
    """Format rows under the names of their keys; as wide as they need to be where no one is looking."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in rows[0]:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    text = io.StringIO()
    width = None if stream.isatty() else 10_000
    Console(file=text, width=width, markup=False, emoji=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
