"""Memory that stays with the process."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ssl_vit.training.memory import keep_memory

PAGES = """
import resource, sys, torch
from ssl_vit.training.memory import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def new():
    before = pages()
    torch.ones(1 << 24)  # 64 MiB
    return pages() - before
print(min(new() for _ in range(9)))  # what is left may be too small by some bytes, if something small came between
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_taken_again_without_new_pages() -> None:
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", PAGES, how], capture_output=True, check=True).stdout)
        for how in ("kept", "given back")
    )
    assert kept < 100 < given_back


@pytest.mark.parametrize("most", [1 << 30, 1 << 25])  # of the C library
def test_an_older_library_keeps_what_it_can(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that refuses large thresholds would otherwise be left with the smallest."""
    found = {}

    def mallopt(which: int, value: int) -> int:
        if which == -3 and value > most:
            return 0
        found[which] = value
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(sys, "platform", "linux")
    keep_memory()
    assert found == {-1: 1 << 30, -3: most}
