"""What the machine and the container allow this process, as the kernel says it: cores, memory, files, processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ssl_vit import system
from ssl_vit.config import RunConfig
from ssl_vit.doctor.finding import Finding, fine, hurts, stops
from ssl_vit.doctor.limits import free_memory, processes, share_of_cores

SHARED = Path("/dev/shm")
_BATCHES = 5  # that each reading process has ready or under way
_BATCH = 20e6  # bytes: 128 images of 224 x 224 pixels
_READERS = 8  # the most that a run starts by itself
_MEMORY, _LITTLE = 8e9, 2e9  # bytes: for a usual run; for any
_FILES, _FEW = 1024, 128  # open files
_PROCESSES = 64


def examine_machine() -> Iterator[Finding]:
    """Look at each thing that a process may have too little of."""
    yield _cores()
    yield _instructions()
    yield _memory()
    yield _shared_memory()
    yield _open_files()
    yield _processes()
    yield _timeouts()


def usable_cores() -> float:
    """Cores that this process may use: those it is bound to, or a container's share of time where that is less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = share_of_cores()
    return bound if share is None else min(bound, share)


def _cores() -> Finding:
    there, usable = os.cpu_count() or 1, usable_cores()
    readers = min(_READERS, there)
    words = f"{there}, of which this process may use {usable:g}"
    if usable < readers:
        best = max(1, int(usable))
        found = f"{words}: a run would start {readers} reading processes, which share them"
        return hurts("cores", found, f"--workers {best}, or docker run --cpus={readers}")
    return fine("cores", f"{words}; a run starts up to {readers} reading processes")


def _instructions() -> Finding:
    try:
        import torch

        best, fast = torch.backends.cpu.get_cpu_capability(), torch.cpu._is_avx512_bf16_supported()
        fast = fast or torch.cpu._is_amx_tile_supported()
    except (ImportError, AttributeError):
        return fine("instructions", "not known")
    return fine("instructions", f"{best}, {'bfloat16' if fast else 'no bfloat16: on the CPU in float32'}")


def _memory() -> Finding:
    free = free_memory()
    if free is None:
        return fine("memory", "not known")
    words = f"{free / 1e9:.1f} GB free"
    mend = "end other programs, give the container more (docker run --memory=16g), or a smaller --batch-size"
    if free < _LITTLE:
        return stops("memory", f"{words}: a run of a usual network ends for want of it", mend)
    if free < _MEMORY:
        return hurts("memory", f"{words}: enough for small networks and batches", mend)
    return fine("memory", words)


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage(SHARED).free
    except OSError:
        return fine("shared memory", f"no {SHARED} here")
    readers = min(_READERS, os.cpu_count() or 1)
    need = readers * _BATCHES * _BATCH
    words = f"{SHARED} has {free / 1e6:,.0f} MB free"
    if free < need:
        found = f"{words}; {readers} reading processes fill up to {need / 1e6:,.0f} MB"
        return hurts("shared memory", found, "docker run --shm-size=8g, or --workers 0")
    return fine("shared memory", words)


def _open_files() -> Finding:
    soft, hard = system.soft_and_hard_limit("RLIMIT_NOFILE") or (-1, -1)
    words = f"{_amount(soft)} allowed"
    most = _FILES if hard < 0 else min(_FILES, hard)
    higher = f"ulimit -n {most}" if most > soft else "docker run --ulimit nofile=4096, or LimitNOFILE= of systemd"
    if soft >= 0 and soft < _FEW:
        return stops("open files", f"{words}: a run with reading processes needs more", higher)
    if soft >= 0 and soft < _FILES:
        return hurts("open files", f"{words}: many reading processes or archives need more", higher)
    return fine("open files", words)


def _processes() -> Finding:
    if (limit := processes()) is None:
        return fine("processes", "no limit")
    most, now = limit
    words = f"{most:.0f} threads and processes allowed, {now:.0f} there"
    if most - now < _PROCESSES:
        return hurts("processes", f"{words}: a run starts some dozens", "docker run --pids-limit=1024, or --workers 0")
    return fine("processes", words)


def _timeouts() -> Finding:
    """What a run takes for hung; the settings are those of a run."""
    found = []
    for section, unit, what in (
        ("data", "seconds", "without a batch"),
        ("train", "minutes", "without another process"),
    ):
        fields = RunConfig.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        if "timeout" in fields:
            found.append(f"{fields['timeout'].default:g} {unit} {what} (--set {section}.timeout=…)")
    return fine("time-outs", f"a run ends after {', or '.join(found)}" if found else "those of torch")


def _amount(limit: int) -> str:
    return "any number" if limit < 0 else f"{limit:,}"
