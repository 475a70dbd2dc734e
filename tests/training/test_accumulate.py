"""A batch worked through in parts: what the whole would have done, wherever no image is compared with another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_vit.data.batch import Batch, to_views
from ssl_vit.data.loader import build_loader
from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError
from ssl_vit.methods.beit import BEiT
from ssl_vit.methods.heads import GlobalBatchNorm1d
from ssl_vit.methods.ibot import IBOT
from ssl_vit.methods.method import Method, Step
from ssl_vit.run.prepare import build_method
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.step import Learner, take_step
from tests.methods.settings import COMMON, SMALL
from tests.test_families_train import resolved

RECIPE: dict[str, Any] = {
    "backbone.drop_path": 0.0,
    "optim.optimizer": "sgd",
    "optim.lr": 0.1,
    "optim.min_lr": 0.1,
    "optim.weight_decay": 0.0,
    "optim.weight_decay_end": 0.0,
    "optim.warmup_epochs": 0.0,
    "optim.clip": 3.0,
    "data.mean": [0.5, 0.5, 0.5],
    "data.std": [0.2, 0.2, 0.2],
    "train.batch_size": 8,
    "train.precision": "32-true",
}
PLAIN: dict[str, dict[str, Any]] = {
    "dino": {"head_norm": "none", "centering": "mean"},
    "esvit": {"head_norm": "none", "centering": "mean", "region_from": 0.0},
    "ibot": {"head_norm": "none", "centering": "mean"},
    "moby": {},
    "beit": {},
    "distill": {},
    "mae": {},
    "simmim": {},
}
STEPS = 3


def without_noise(method: Method, patch: pytest.MonkeyPatch) -> Method:
    """In float64, without batch norm, and the same patches of every image hidden, in whichever part it comes."""
    for module in list(method.modules()):
        for name, child in module.named_children():
            if isinstance(child, GlobalBatchNorm1d):
                setattr(module, name, nn.Identity())
    rand = torch.rand
    patch.setattr("torch.rand", lambda *size: rand(*size[1:], generator=torch.Generator().manual_seed(0)).expand(size))
    square = torch.zeros(1, 4, 4, dtype=torch.bool)
    square[:, 1:3, 1:4] = True
    patch.setattr(BEiT, "draw_masks", lambda _, images, *grid: square.expand(images, *grid))
    first = torch.tensor([True, False])[:, None, None, None]  # of the two global crops
    patch.setattr(IBOT, "draw_masks", lambda _, n, *grid: (first & square[None]).expand(2, n // 2, *grid).flatten(0, 1))
    return method.double()


def trained(name: str, parts: int, pictures: Path, patch: pytest.MonkeyPatch) -> tuple[list[Step], dict[str, Tensor]]:
    """Three steps of 8 images: what each said, and the state that they leave."""
    flags = COMMON | {f"method.{key}": value for key, value in (SMALL[name] | PLAIN[name]).items()} | RECIPE
    config = resolved(name, "vision_transformer", **flags | {"train.accumulate": parts})
    torch.manual_seed(0)
    method = without_noise(build_method(config), patch)
    loader = build_loader(open_source(str(pictures / "train")), method.views(), batch_size=8, seed=0, total_steps=STEPS)
    learner = Learner(new_fabric(config.train), method, config, per_epoch=6, total=STEPS)
    steps = [take_step(learner, batch, step).given for step, batch in enumerate(loader)]
    return steps, dict(method.state_dict())


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("name", PLAIN)
def test_parts_are_the_whole(name: str, parts: int, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def doubles(*args: Any, **kwargs: Any) -> list[Tensor]:
        return [view.double() for view in to_views(*args, **kwargs)]

    monkeypatch.setattr("ssl_vit.training.step.to_views", doubles)
    with monkeypatch.context() as patch:
        whole, expected = trained(name, 1, pictures, patch)
    with monkeypatch.context() as patch:
        found, state = trained(name, parts, pictures, patch)
    for a, b in zip(whole, found, strict=True):
        torch.testing.assert_close(b.loss, a.loss.detach(), rtol=0, atol=1e-10)
        torch.testing.assert_close(b.embedding, a.embedding, rtol=0, atol=1e-10)
        assert a.parts.keys() == b.parts.keys()
    assert len({float(step.loss.detach()) for step in whole}) == STEPS, "nothing is compared where nothing changes"
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=1e-10, msg=key)


def test_a_batch_is_divided_by_images(pictures: Path) -> None:
    """Crop-major: part after part holds the same images' crops, parameters and numbers."""
    method = build_method(resolved("dino", "vision_transformer"))
    loader = build_loader(open_source(str(pictures / "train")), method.views(), batch_size=6, seed=0, total_steps=1)
    batch: Batch = next(iter(loader))
    parts = batch.divided(3)
    assert torch.cat([part.index for part in parts]).equal(batch.index)
    for i, view in enumerate(batch.plan.views):
        joined = torch.cat([part.views[i].unflatten(0, (view.count, 2)) for part in parts], dim=1)
        assert joined.flatten(0, 1).equal(batch.views[i])
        values = torch.cat([part.params[i].unflatten(0, (view.count, 2)) for part in parts], dim=1)
        assert values.flatten(0, 1).equal(batch.params[i])


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("dino", {"train.batch_size": 8, "train.accumulate": 3}, "train.accumulate = 3 parts; set a multiple of 3"),
        ("byol", {"train.batch_size": 4, "train.accumulate": 4}, "compares images with each other; set at least 8"),
    ],
)
def test_what_cannot_be_divided_is_refused(method: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"train.batch_size: .*{said}"):
        resolved(method, "vision_transformer", **settings)
