"""What is done to a process as a whole, and that it can be switched off."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ssl_vit.process import keep_memory

PAGES = """
import resource, sys, torch
from ssl_vit.process import keep_memory
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


SIGNAL = """
import ctypes
from ssl_vit.process import die_with_parent
die_with_parent()
number = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
print(number.value)
"""
WORKER = """
import os, signal, threading, torch
from ssl_vit.process import start_worker
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, signal.SIG_DFL)  # a shell may have had the tests ignore some
start_worker(os.getppid(), 0)
left = [signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
print(os.getpgid(0) == os.getpid(), threading.active_count(), torch.get_num_threads(), all(left), any(left))
"""


def run(script: str, *argv: str, **environment: str) -> str:
    command = [sys.executable, "-c", script, *argv]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, check=True, text=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
def test_a_rank_is_killed_with_the_first_one() -> None:
    assert int(run(SIGNAL)) == signal.SIGKILL
    assert int(run(SIGNAL, SSL_VIT_DIE_TOGETHER="0")) == 0
    assert int(run(SIGNAL, TORCHELASTIC_RUN_ID="1")) == 0  # torchrun sees to it


def test_a_reader_of_images_leaves_the_group_and_watches_the_main_process() -> None:
    assert run(WORKER).split() == ["True", "2", "1", "True", "True"]
    still = run(WORKER, SSL_VIT_OWN_GROUP="0", SSL_VIT_WATCH_MAIN="0").split()
    assert still == ["False", "1", "1", "False", "False"]


@pytest.mark.slow  # and a break costs speed alone
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_taken_again_without_new_pages() -> None:
    kept, given_back, switched_off = (
        int(run(PAGES, how, SSL_VIT_KEEP_MEMORY=switch))
        for how, switch in (("kept", "1"), ("given back", "1"), ("kept", "0"))
    )
    assert kept < 100 < min(given_back, switched_off)


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
