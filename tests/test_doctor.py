"""The doctor names what would hurt a run, under real conditions: limits, small disks, files as people have them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_vit.cli import main
from ssl_vit.doctor import Finding, doctor
from ssl_vit.doctor.disk import examine_disk
from ssl_vit.doctor.gpu import examine_gpus
from ssl_vit.doctor.images import examine_images
from ssl_vit.doctor.install import examine_install
from ssl_vit.doctor.machine import examine_machine


def of(findings: Iterator[Finding], subject: str) -> Finding:
    """The one finding of a subject."""
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


def draw(path: Path, seed: int = 0, side: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight different pictures in two classes."""
    for index in range(8):
        draw(tmp_path / "photos" / "ab"[index % 2] / f"{index}.png", index)
    return tmp_path / "photos"


def test_the_command_says_a_line_each_and_writes_json(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(photos), "--out", str(tmp_path / "run"), "--json", str(tmp_path / "x.json")]) == 0
    said = capfd.readouterr().out
    found = json.loads((tmp_path / "x.json").read_text())
    for finding in found:
        assert finding["found"] in said
        assert finding["level"] in ("fine", "will hurt")
        assert bool(finding["mend"]) == (finding["level"] != "fine")
    subjects = {finding["subject"] for finding in found}
    assert {
        "Python",
        "torch",
        "cores",
        "shared memory",
        "open files",
        "disk",
        "images",
        "left out",
        "classes",
    } <= subjects
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "x.json"]


def test_what_stops_a_run_ends_with_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--out", str(tmp_path / "file" / "run")]) == 1
    told = capfd.readouterr()
    assert "stops a run  disk" in told.out
    assert f"{tmp_path / 'file'} is a file" in told.out
    assert told.err.splitlines() == [
        "ssl-vit: error: a run would be stopped by: disk; the lines above say what mends it"
    ]


@pytest.mark.fault
def test_a_malicious_release_is_named_and_never_imported(tmp_path: Path) -> None:
    """A package that calls itself lightning 2.6.2 lies before the real one, and leaves a mark where it is imported."""
    info = tmp_path / "lightning-2.6.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning\nVersion: 2.6.2\n")
    package = tmp_path / "lightning"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    line = [sys.executable, "-m", "ssl_vit", "doctor", str(tmp_path), "--out", str(tmp_path)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "lightning" in done.stderr
    assert "2.6.2 is a malicious release" in done.stdout
    assert "pip uninstall lightning" in done.stdout
    assert not (tmp_path / "mark").exists()


def test_a_package_that_is_too_old_or_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "timm-0.9.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.9.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = of(examine_install(), "timm")
    assert found.level == "stops a run"
    assert found.found.startswith("0.9.0, timm>=")
    assert found.mend.startswith("pip install --upgrade 'timm>=")


@pytest.mark.fault
@pytest.mark.parametrize(("allowed", "level"), [(100, "stops a run"), (512, "will hurt"), (1024, "fine")])
def test_few_open_files(allowed: int, level: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    try:
        found = of(examine_machine(), "open files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.level == level
    assert str(allowed) in found.found.replace(",", "")
    if level != "fine":
        assert found.mend == "ulimit -n 1024"


@pytest.mark.fault
def test_fewer_cores_than_the_machine_has() -> None:
    """A process that is bound to one core of several."""
    if not hasattr(os, "sched_setaffinity") or len(allowed := os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores, and Linux")
    os.sched_setaffinity(0, {min(allowed)})
    try:
        found = of(examine_machine(), "cores")
    finally:
        os.sched_setaffinity(0, allowed)
    assert found.level == "will hurt"
    assert "use 1:" in found.found
    assert "--workers 1" in found.mend


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.fault
def test_a_small_disk_stops_a_run(small_disk: Path) -> None:
    found = list(examine_disk(small_disk / "runs" / "first"))
    assert of(iter(found), "disk").level == "stops a run"
    assert "not one checkpoint fits" in of(iter(found), "disk").found
    assert "lies in memory (tmpfs)" in of(iter(found), "runs").found
    assert not any(small_disk.iterdir()), "what was tried is deleted"


@pytest.mark.fault
def test_small_shared_memory(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real small file system in the place of /dev/shm."""
    monkeypatch.setattr("ssl_vit.doctor.machine.SHARED", small_disk)
    found = of(examine_machine(), "shared memory")
    assert found.level == "will hurt"
    assert "has 6 MB free" in found.found
    assert "--shm-size" in found.mend


def test_a_folder_as_people_have_it(photos: Path, tmp_path: Path) -> None:
    """Links out of it, text, a broken picture, a copy, pictures of 16 bits, strays: each is a line with a number."""
    outside = draw(tmp_path / "elsewhere" / "far.png", 99)
    (photos / "a" / "link.png").symlink_to(outside)
    (photos / "a" / "notes.txt").write_text("x")
    (photos / "b" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (photos / "b" / "copy.png").write_bytes((photos / "a" / "0.png").read_bytes())
    Image.fromarray(np.full((64, 64), 4000, np.uint16)).save(photos / "a" / "deep.png")
    draw(photos / "stray.png", 7_000)
    found = list(examine_images(str(photos)))
    assert all(
        finding.level != "fine" for finding in found if finding.subject in ("images", "readable", "values", "copies")
    )
    assert "1 of 12" in of(iter(found), "readable").found or "1 of 13" in of(iter(found), "readable").found
    assert of(iter(found), "readable").level == "stops a run", "8 % are more than max_bad allows"
    assert "broken.png" in of(iter(found), "readable").found
    assert "a/0.png = b/copy.png" in of(iter(found), "copies").found
    assert "1 uint16" in of(iter(found), "values").found
    assert of(iter(found), "values").level == "will hurt", "of two kinds"
    assert "1 images lie beside the sub-folders" in of(iter(found), "classes").found
    assert ".txt" in of(iter(found), "left out").found
    assert "--outside-links" in of(iter(found), "left out").found
    followed = of(iter(list(examine_images(str(photos), outside_links=True))), "left out")
    assert "link" not in followed.found


def test_a_photo_that_breaks_off_inside_is_found_though_its_header_is_whole(photos: Path) -> None:
    path = photos / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:-3000])
    found = list(examine_images(str(photos)))
    assert of(iter(found), "readable").level == "fine"
    assert "1 of 8 images break off inside, such as a/0.png" in of(iter(found), "decoding").found


def test_rare_classes_small_and_huge_pictures(tmp_path: Path) -> None:
    for index in range(51):
        draw(tmp_path / "small" / "many" / f"{index}.png", index, side=16)
    draw(tmp_path / "small" / "one" / "x.png", 999, side=16)
    found = list(examine_images(str(tmp_path / "small")))
    assert "from 1 images (one) to 51 (many)" in of(iter(found), "classes").found
    assert of(iter(found), "classes").level == of(iter(found), "sizes").level == "will hurt"
    draw(tmp_path / "large" / "x.png", side=1100)
    assert "ssl-vit pack" in of(examine_images(str(tmp_path / "large")), "sizes").mend


def test_no_images_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (found,) = examine_images(str(tmp_path / "empty"))
    assert found.level == "stops a run"
    assert "no images" in found.found


def test_gpus_are_named() -> None:
    import torch

    found = list(examine_gpus())
    if torch.cuda.is_available():
        assert torch.cuda.get_device_name(0) in of(iter(found), "GPU 0").found
    else:
        assert [finding.subject for finding in found] == ["GPU"]


def test_without_images_nothing_is_said_of_them(tmp_path: Path) -> None:
    assert "ssl-vit doctor DATA" in of(iter(doctor(out=tmp_path)), "images").found


@pytest.mark.fault
@pytest.mark.parametrize(("gigabytes", "level"), [(1, "stops a run"), (4, "will hurt")])
def test_little_memory(gigabytes: int, level: str) -> None:
    """A process that may not take more than so much beside what it has (ulimit -v)."""
    used = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1024 * int(used.split()[1]) + gigabytes * 10**9, hard))
    try:
        found = of(examine_machine(), "memory")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert found.level == level
    assert f"{gigabytes}.0 GB free" in found.found or f"{gigabytes - 0.1} GB free" in found.found


@pytest.mark.fault
def test_limits_of_a_control_group(tmp_path: Path) -> None:
    """A process in a real group that may have 300 MB, a quarter of a core and 20 threads."""
    groups = [Path("/sys/fs/cgroup", name, "ssl-vit-test") for name in ("memory", "cpu", "pids")]
    limits = {"memory.limit_in_bytes": "300M", "cpu.cfs_quota_us": "25000", "pids.max": "20"}
    code = "from ssl_vit.doctor.limits import *; print(free_memory(), share_of_cores(), *processes())"
    try:
        try:
            for group, (name, value) in zip(groups, limits.items(), strict=True):
                group.mkdir()
                (group / name).write_text(value)
        except OSError:
            pytest.skip("only root may make control groups, here those of version 1")
        join = "; ".join(f"echo $$ > {group}/cgroup.procs" for group in groups)
        line = ["sh", "-c", f"{join}; exec {sys.executable} -c '{code}'"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        said = subprocess.run(line, capture_output=True, text=True, check=True, env=environment).stdout
    finally:
        for group in groups:
            with suppress(OSError):
                group.rmdir()
    memory, cores, most, now = map(float, said.split())
    assert 200e6 < memory < 300 * 2**20
    assert (cores, most) == (0.25, 20)
    assert 1 <= now < 20
