"""Every technique with methods and networks of several kinds: it trains, goes on exactly, and processes share it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from ssl_vit.methods.beit import BEiT
from ssl_vit.methods.heads import GlobalBatchNorm1d
from ssl_vit.methods.ibot import IBOT
from ssl_vit.methods.method import Method
from ssl_vit.run.prepare import build_method, new_averages
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.step import Learner, ReadyViews, take_step
from tests.runs import process_of
from tests.test_families_train import resolved
from tests.training.test_accumulate import RECIPE

START = {"backbone.weights": "a file", "optim.heads_first": 0, "optim.backbone_rate": 1.0}
TECHNIQUES: dict[str, dict[str, Any]] = {
    "sam": {"optim.sam_rho": 0.1, "optim.sam_global": True},
    "diversify": {"train.diversify": 0.5},
    "scale": {"optim.optimizer": "adafactor", "optim.schedule": "rsqrt", "optim.head_weight_decay": 0.3},
    "average": {"train.ema": 0.5, "train.swa": 0.5},
    "lora": {"adapt.lora_rank": 2} | START,
    "anchors": {"adapt.anchor_pooled_cosine": 1.0, "adapt.anchor_patch_squared": 1.0, "adapt.l2_sp": 1.0} | START,
    "gram": {"method.gram_weight": 1.0, "method.gram_from": 0.5, "method.centering": "sinkhorn"},
}
NETWORKS = {"vit": "vision_transformer", "swin": "swin_transformer", "mlp": "mlp_mixer"}
IMAGES, STEPS = 8, 4
RAND = torch.rand
State = dict[str, Tensor]
CASES = [
    (technique, method, network)
    for technique in TECHNIQUES
    for method in ("dino", "moby", "beit", "mae")
    for network in NETWORKS
    if not (method == "mae" and network != "vit")  # it needs a plain transformer
    and not (technique == "average" and method == "dino")  # which exports its teacher
    and technique != "gram"
]
CASES += [("gram", "dinov2", network) for network in NETWORKS]


def without_noise(method: Method, patch: pytest.MonkeyPatch) -> Method:
    """In float64, without batch norm, and the same half of every image hidden, in whichever process it comes."""
    for module in list(method.modules()):
        for name, child in module.named_children():
            if isinstance(child, GlobalBatchNorm1d):
                setattr(module, name, nn.Identity())
    patch.setattr("torch.rand", lambda *size: RAND(*size[1:], generator=torch.Generator().manual_seed(0)).expand(size))

    def half(self: BEiT, images: int, height: int, width: int) -> Tensor:
        hidden = torch.zeros(1, height, width, dtype=torch.bool)
        hidden[:, :, : width // 2] = True
        return hidden.expand(images, height, width)

    def half_of_first(self: IBOT, crops: int, height: int, width: int) -> Tensor:
        hidden = torch.zeros(crops, height, width, dtype=torch.bool)
        hidden[: crops // 2, :, : width // 2] = True
        return hidden

    patch.setattr(BEiT, "draw_masks", half)
    patch.setattr(IBOT, "draw_masks", half_of_first)
    return method.double()


def train(
    technique: str,
    name: str,
    network: str,
    *,
    rank: int = 0,
    world: int = 1,
    fabric: Fabric | None = None,
    stop: int = 0,
) -> tuple[list[float], State]:
    """Losses, and the weights in the end, averages too; with ``stop`` a new learner goes on after so many steps."""
    more = {"optim.clip": 0.0, "optim.lr": 0.01, "optim.min_lr": 0.0, "train.batch_size": IMAGES}
    more |= {"method.head_norm": "none", "method.centering": "mean"} if name in ("dino", "dinov2") else {}
    more |= {"method.mask_ratio": 0.5} if name in ("beit", "mae") else {}
    config = resolved(name, NETWORKS[network], **RECIPE | more | TECHNIQUES[technique])
    found: list[float] = []
    kept: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for begin, end in [(0, stop), (stop, STEPS)] if stop else [(0, STEPS)]:
            torch.manual_seed(0)
            method = without_noise(build_method(config), patch)
            learner = Learner(fabric or new_fabric(config.train), method, config, per_epoch=2, total=STEPS)
            averages = new_averages(config, method)
            if kept:
                method.load_state_dict(kept["method"])
                learner.optimizer.load_state_dict(kept["optimizer"])
                for average in averages:
                    average.restore_state(kept[average.name])
            for average in averages:
                average.begin(learner, begin)
            for step in range(begin, end):
                outcome = take_step(learner, ReadyViews(part(views(method, step), rank, world)), step)
                found.append(outcome.loss)
                for average in averages:
                    average.after_step(outcome)
            kept = {"method": {key: value.clone() for key, value in method.state_dict().items()}}
            kept |= {"optimizer": learner.optimizer.state_dict()}
            kept |= {average.name: average.state() for average in averages}
    state: State = dict(kept["method"])
    for average in averages:
        state |= {f"{average.name}.{key}": value for key, value in kept[average.name]["kept"].items()}
    return found, state


def views(method: Method, step: int) -> list[list[Tensor]]:
    """Those of all images, image by image, of each kind of crop: [count, 3, S, S]."""
    drawn = torch.Generator().manual_seed(step)
    plan = method.views().views
    shapes = [(view.count, 3, view.size, view.size) for view in plan]
    return [[torch.randn(shape, generator=drawn).double() for _ in range(IMAGES)] for shape in shapes]


def part(of_images: list[list[Tensor]], rank: int, world: int) -> list[Tensor]:
    """A process's share, crop-major."""
    share = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    return [torch.stack(images[share], dim=1).flatten(0, 1) for images in of_images]


@pytest.mark.parametrize(
    ("technique", "name", "network"),
    [pytest.param(*case, marks=() if case[1:] == ("mae", "vit") else pytest.mark.slow) for case in CASES],
)
def test_it_trains_and_goes_on_exactly(technique: str, name: str, network: str) -> None:
    losses, state = train(technique, name, network)
    again, resumed = train(technique, name, network, stop=2)
    assert losses == again
    assert len(set(losses)) == STEPS
    assert state.keys() == resumed.keys()
    for key, value in state.items():
        assert bool(value.isfinite().all()), key
        assert value.equal(resumed[key]), key


def one_of_two(rank: int, port: str, cases: list[tuple[str, str, str]], place: str) -> None:
    """Train some cases as one of two processes; the first one's results are kept."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0", "GROUP_RANK": "0"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    rank_zero_only.rank = rank
    config = resolved("mae", "vision_transformer", **{"train.devices": 2})
    fabric = new_fabric(config.train)
    fabric.launch()
    found = {case: train(*case, rank=rank, world=2, fabric=fabric) for case in cases}
    if rank == 0:
        torch.save({" ".join(case): each for case, each in found.items()}, place)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_two_processes_do_what_one_does(technique: str, network: str, tmp_path: Path) -> None:
    """Weights and averages to 1e-9; with Adafactor, whose momentum is rounded to bfloat16, to a hundredth of a step."""
    cases = [case for case in CASES if case[0] == technique and case[2] == network]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    two = [process_of(one_of_two, rank, port, cases, str(tmp_path / "two")) for rank in (0, 1)]
    for process in two:
        process.join()
    assert [process.exitcode for process in two] == [0, 0]
    found = torch.load(tmp_path / "two", weights_only=True)
    near = 1e-4 if technique == "scale" else 1e-9
    for case in cases:
        losses, state = train(*case)
        assert found[" ".join(case)][0] == pytest.approx(losses, rel=0, abs=near), case
        for key, value in state.items():
            torch.testing.assert_close(found[" ".join(case)][1][key], value, rtol=0, atol=near, msg=f"{case} {key}")
