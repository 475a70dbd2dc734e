"""A step on a GPU that isn't there: no devices are mixed, and it waits for the device once, where it has to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssl_vit.methods import list_methods
from tests.methods.settings import NEEDED
from tests.rehearsal.fake import ROOT, build

VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
PLAIN_ONLY = {"mae"}
MATCHING = "detreg"  # on the CPU, for which it waits
SHALLOW = {VIT: {"backbone.args": {"depth": 2}}, SWIN: {"backbone.args": {"depths": [1, 1, 1, 1]}}}

TAUGHT = {name: {f"method.{key}": value for key, value in needed.items()} for name, needed in NEEDED.items()}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if not (shutil.which("gcc") and shutil.which("nm")):
        pytest.skip("no C compiler for the stand-in of CUDA's runtime")
    found = build(tmp_path_factory.mktemp("cuda"))
    if found is None:
        pytest.skip("this torch was built without CUDA")
    return found


def rehearsed(environment: dict[str, str], backbone: str, *methods: str) -> list[dict[str, Any]]:
    pairs = [f"{method}:{backbone}" for method in methods]
    settings = {pair: SHALLOW.get(backbone, {}) | TAUGHT.get(pair.partition(":")[0], {}) for pair in pairs}
    argv = [sys.executable, "-m", "tests.rehearsal.fake", json.dumps(settings)]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["pair"] for each in found] == pairs
    return found


def check(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["mixed"] == {}, each["pair"]
        assert each["left"] == [], each["pair"]
        assert sum(each["launches"].values()) > 100, each["pair"]
        if not each["pair"].startswith(MATCHING):
            (wait,) = each["waits"]
            assert wait.startswith("a copy to the CPU at training/step.py:"), each["pair"]


def test_a_step_waits_for_the_device_once(environment: dict[str, str]) -> None:
    check(rehearsed(environment, VIT, "ibot"))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [VIT, SWIN, "resnet18", "convnext_atto", "cswin_tiny_224", "cmt_ti"])
def test_every_method_rehearses_on_every_kind(environment: dict[str, str], backbone: str) -> None:
    plain = backbone == VIT
    check(rehearsed(environment, backbone, *(name for name in list_methods() if plain or name not in PLAIN_ONLY)))


def test_what_waits_and_what_mixes_devices_is_seen(environment: dict[str, str], tmp_path: Path) -> None:
    code = """
import torch
from tests.methods.settings import NEEDED
from tests.rehearsal.fake import device_class
with device_class()() as device:
    x = torch.ones(3, 4, device="cuda")
    float(x.sum()), x[x > 0], x.cpu(), torch.ones(2).to("cuda")
    try:
        x + torch.ones(4)
    except RuntimeError as error:
        assert "two devices" in str(error)
print(sum(device.waits.values()), sum(device.mixed.values()), x.device)
"""
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["4", "1", "cuda:0"], done.stderr
