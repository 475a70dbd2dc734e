"""Every technique with methods and networks of several kinds: real runs, stopped and resumed, and in two processes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.methods.settings import COMMON, SMALL
from tests.runs import Trap, finish, finish_two, losses

TECHNIQUES: dict[str, dict[str, Any]] = {
    "sam": {"optim.sam_rho": 0.1, "optim.sam_global": True},
    "diversify": {"train.diversify": 0.1},
    "scale": {"optim.optimizer": "adafactor", "optim.schedule": "rsqrt", "optim.head_weight_decay": 0.3},
    "average": {"train.ema": 0.9, "train.swa": 0.5},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "vit": {},
    "swin": {
        "backbone.name": "swin_tiny_patch4_window7_224",
        "backbone.args": {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    },
    "mlp": {"backbone.name": "resmlp_12_224", "backbone.args": {"patch_size": 8, "embed_dim": 32, "num_blocks": 2}},
}
ONE_VIEW = {"beit", "mae"}  # the others' pooled batch norm needs care in two processes
CASES = [
    pytest.param(technique, method, network, marks=pytest.mark.slow, id=f"{technique}-{method}-{network}")
    for technique in TECHNIQUES
    for method in ("dino", "moby", "beit", "mae")
    for network in NETWORKS
    if not (method == "mae" and network != "vit")  # it needs a plain transformer
    and not (technique == "average" and method == "dino")  # which exports its teacher
]


def command(technique: str, method: str, network: str, pictures: Path, out: Path) -> list[str]:
    flags = COMMON | {"method.name": method, "optim.lr": 1e-4, "backbone.drop_path": 0.0} | NETWORKS[network]
    flags |= {f"method.{key}": value for key, value in SMALL[method].items()} | TECHNIQUES[technique]
    if method == "dino":
        flags |= {"method.head_norm": "none", "method.centering": "mean", "method.local_size": 32}
    if method == "moby":
        flags |= {"method.momentum": 0.99}
    sets = [word for key, value in flags.items() for word in ("--set", f"{key}={value}")]
    return ["pretrain", str(pictures / "train"), "--out", str(out), *sets]


@pytest.mark.dist
@pytest.mark.parametrize(("technique", "method", "network"), CASES)
def test_it_trains_resumes_exactly_and_shares_its_work(
    technique: str, method: str, network: str, pictures: Path, tmp_path: Path
) -> None:
    once, twice, two = (command(technique, method, network, pictures, tmp_path / name) for name in ("a", "b", "c"))
    said = tmp_path / "said"
    assert finish(once, said) == 0, said.read_text()
    assert finish(twice, said, Trap(signal.SIGTERM, 5)) == 143
    assert finish([*twice, "--resume"], said) == 0, said.read_text()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    files = [(tmp_path / run / "export" / "model.safetensors").read_bytes() for run in "ab"]
    assert files[0] == files[1]
    if method == "beit":
        return  # its masks are drawn by each process for itself
    assert finish_two(two, said) == [0, 0], said.read_text()
    if method == "mae":
        return  # likewise
    assert losses(tmp_path / "c") == pytest.approx(losses(tmp_path / "a"), rel=0, abs=1e-4)
