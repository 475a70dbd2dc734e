"""Systems that lack what Linux has, as Windows and macOS do, played by processes from which it has been taken."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssl_vit import device, system
from ssl_vit.errors import UserError
from tests.runs import SETTINGS, losses

# Read by every interpreter at its start, so also by processes that are started by it.
WITHOUT = """
import fcntl, multiprocessing, os, shutil, signal, subprocess, sys  # two of them look for what is taken away here

class Locks:
    LK_NBLCK = 2

    @staticmethod
    def locking(descriptor, how, count):
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 1 << 30, "what the file says could not be read"
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, 0, os.SEEK_CUR)

def disk_usage(path, real=shutil.disk_usage):
    if str(path) == "/dev/shm":
        raise FileNotFoundError(path)
    return real(path)

shutil.disk_usage = disk_usage
sys.modules["msvcrt"] = Locks
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("fork", "forkpty", "setpgid", "sched_getaffinity", "O_NONBLOCK", "O_CLOEXEC", "getuid"):
    delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBUS"):
    delattr(signal, name)
multiprocessing.set_start_method("spawn")
"""
PSUTIL = """
import os
class Process:
    def memory_info(self):
        return type("Held", (), {"rss": 1, "peak_wset": 3 * 10**9})
def pid_exists(pid):
    return os.path.exists(f"/proc/{pid}")
"""


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of such a process; psutil is there, which is installed on Windows."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "sitecustomize.py").write_text(WITHOUT)
    (folder / "psutil.py").write_text(PSUTIL)
    root = str(Path(__file__).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), root]), "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], env=environment, capture_output=True, text=True)


LOCKS = """
import os, subprocess, sys
from pathlib import Path
from ssl_vit import system
from ssl_vit.files import alone, new_folder, write_atomically

lock, other = Path(sys.argv[1]), "import sys\\nfrom pathlib import Path\\nfrom ssl_vit.files import alone\\n"
other += "with alone(Path(sys.argv[1]), 'it', wait=False):\\n    print('inside')"
with alone(lock, "it"):
    print("pid", os.getpid())  # to read the file here would let go of the lock that stands for Windows'
    print(subprocess.run([sys.executable, "-c", other, str(lock)], capture_output=True, text=True).stderr)
print(subprocess.run([sys.executable, "-c", other, str(lock)], capture_output=True, text=True).stdout)
write_atomically(lock.with_name("a"), lambda path: path.write_text("whole"))
with new_folder(lock.with_name("b")) as made:
    (made / "c").write_text("whole")
assert system.most_memory() == 3 * 10**9 and system.soft_and_hard_limit("RLIMIT_AS") is None
import ssl_vit.process, ssl_vit.doctor.limits, ssl_vit.doctor.machine, ssl_vit.doctor.disk
assert "torch" not in sys.modules
print([finding.found for finding in ssl_vit.doctor.disk.examine_disk(lock.parent)])
"""


def test_locks_of_windows_keep_others_out_and_say_who_has_them(without: dict[str, str], tmp_path: Path) -> None:
    done = run(without, "-c", LOCKS, str(tmp_path / "lock"))
    assert done.returncode == 0, done.stderr
    held = done.stdout.splitlines()[0]
    assert held.startswith("pid ")
    assert f"another process is at work there ({held} on " in done.stdout
    assert "\ninside\n" in done.stdout
    assert "GB free" in done.stdout


def test_without_locks_of_any_kind_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system, "fcntl", None)
    with (tmp_path / "lock").open("w") as file, pytest.raises(OSError, match="no locks") as found:
        system.lock(file.fileno())
    assert found.value.errno == errno.ENOLCK


def test_a_process_lives_until_it_has_ended() -> None:
    assert system.lives(os.getpid())
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    assert not system.lives(child.pid)


@pytest.mark.slow  # every process imports all anew
def test_a_run_its_resumption_its_score_and_its_export(without: dict[str, str], pictures: Path, tmp_path: Path) -> None:
    out, train = tmp_path / "run", str(pictures / "train")
    settings = SETTINGS | {"train.epochs": 2, "data.workers": 2}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    begun = ["-m", "ssl_vit", "pretrain", train, "--out", str(out), "--val", str(pictures / "val"), *sets]
    done = run(without, *begun)
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout + done.stderr
    (out / "COMPLETE").unlink()
    for path in (out / "checkpoints").glob("step-000000012*"):
        path.unlink()
    before = losses(out)
    sides = ["--val", str(pictures / "val")]
    done = run(without, "-m", "ssl_vit", "pretrain", train, "--out", str(out), "--resume", *sides)
    assert done.returncode == 0, done.stderr
    assert losses(out) == before
    sides += ["--train", train]
    done = run(without, "-m", "ssl_vit", "eval", "knn", str(out), *sides)
    assert done.returncode == 0, done.stderr
    assert "knn" in json.loads(done.stdout)
    done = run(without, "-m", "ssl_vit", "export", str(out), "--to", "safetensors", "--out", str(tmp_path / "given"))
    assert done.returncode == 0, done.stderr
    done = run(without, "-m", "ssl_vit", "doctor", train, "--out", str(out))
    assert "Traceback" not in done.stderr + done.stdout


def test_the_device_is_the_one_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.kind() == "cuda", "Apple's is never taken unasked"
    for kind in device.KINDS:
        monkeypatch.setenv("SSL_VIT_DEVICE", kind)
        assert device.the_device().type == kind
    assert device.on_gpu() is False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("SSL_VIT_DEVICE", "cuda")
    with pytest.raises(UserError, match="torch sees no such device here"):
        device.kind()
    monkeypatch.setenv("SSL_VIT_DEVICE", "tpu")
    with pytest.raises(UserError, match="expected cuda, mps or cpu, got 'tpu'"):
        device.kind()
