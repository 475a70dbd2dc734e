"""What control groups (containers, systemd, Slurm) and the shell's own limits leave to this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ssl_vit import system

_ROOT = Path("/sys/fs/cgroup")


def share_of_cores() -> float | None:
    """Cores' worth of time that may be used; None without a limit."""
    shares = []
    for group in _groups("cpu"):
        words = _text(group / "cpu.max").split()  # version 2: "QUOTA PERIOD"
        words = words or [_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")]
        quota, period = (_number(word) for word in words[:2])
        if quota and period and quota > 0:
            shares.append(quota / period)
    return min(shares, default=None)


def free_memory() -> float | None:
    """Bytes that may still be taken: of the machine, of each control group, of the address space; the least of them."""
    found = [1024 * free] if (free := _number(_field("/proc/meminfo", "MemAvailable"))) else []
    for group in _groups("memory"):
        for most, now in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, used = _number(_text(group / most)), _number(_text(group / now))
            if limit is not None and used is not None:
                found.append(limit - used)
    most_addresses, _ = system.soft_and_hard_limit("RLIMIT_AS") or (-1, -1)
    used_addresses = _number(_field("/proc/self/status", "VmSize"))
    if most_addresses >= 0 and used_addresses is not None:
        found.append(most_addresses - 1024 * used_addresses)
    return min(found, default=None)


def processes() -> tuple[float, float] | None:
    """Threads and processes that may be there and that are, in the group with the least room; None without a limit."""
    found = [(_number(_text(group / "pids.max")), _number(_text(group / "pids.current"))) for group in _groups("pids")]
    limited = [(most, now) for most, now in found if most is not None and now is not None]
    return min(limited, key=lambda pair: pair[0] - pair[1], default=None)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, in version 2 and in version 1."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _ROOT / controllers if controllers else _ROOT
        folder = root / place.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(root) and group.is_dir():  # in a container the path is the host's
                yield group


def _field(file: str, name: str) -> str:
    lines = _text(Path(file)).splitlines()
    return next((line.split()[1] for line in lines if line.startswith(f"{name}:")), "")


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "max", or nothing
        return None
