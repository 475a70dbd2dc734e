"""One step of DINO with a model of every family: loss, gradients, optimiser, teacher."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssl_vit.auto import Facts, resolve_config
from ssl_vit.backbones import backbone_info
from ssl_vit.config import RunConfig, load_config
from ssl_vit.experiment import build_method
from ssl_vit.methods.dino import DINO
from ssl_vit.methods.method import Progress
from ssl_vit.training.optim import clip_gradients, make_optimizer
from tests.families import cheapest

IMAGES, MOMENTUM = 2, 0.9
FACTS = {"images": 1000, "colours": lambda: ((0.5,) * 3, (0.2,) * 3), "gpus": 0, "cpus": 1, "bfloat16": False}
CANNOT: dict[str, str] = {}  # family: what the refusal says


def small(family: str) -> tuple[str, int, dict[str, Any]]:
    """Name, size and arguments of the family's cheapest model; 64 pixels where it is not made smaller yet."""
    name, kwargs = cheapest()[family]
    args = kwargs.get("model_args", {})
    if "image_size" in kwargs:
        return name, kwargs["image_size"], args
    info = backbone_info(name, model_args=args)
    smallest = -(-64 // info.multiple) * info.multiple
    return name, smallest if info.any_size else info.size[0], args


def resolved(family: str) -> RunConfig:
    """What a run of the family's model on a thousand small images would be, with a tiny head."""
    name, size, args = small(family)
    info = backbone_info(name, image_size=size, model_args=args)
    flags = {
        "data.path": "nowhere",
        "backbone.name": name,
        "backbone.image_size": size,
        "method.out_dim": 64,
        "method.hidden_dim": 32,
        "method.bottleneck_dim": 16,
        "method.momentum": MOMENTUM,
        "method.freeze_last_layer_epochs": 0.0,
        "method.local_crops": 1,
        "method.local_size": size + info.multiple if info.any_size else size,  # as smaller ones may be too small
        "train.batch_size": IMAGES,
    }
    config, _ = resolve_config(load_config(flags=flags), Facts(side=size, **FACTS))
    # In here, as the schema has no lists and these models are made small by lists.
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"args": args})})


@pytest.mark.parametrize("family", sorted(set(cheapest()) - set(CANNOT)))
def test_one_step(family: str) -> None:
    torch.manual_seed(0)
    method = build_method(resolved(family))
    assert isinstance(method, DINO)
    batch = [torch.randn(view.count * IMAGES, 3, view.size, view.size) for view in method.views().views]
    student = {name: p for name, p in method.student.named_parameters() if p.requires_grad}
    teacher = dict(method.teacher.named_parameters())
    before = {name: p.detach().clone() for name, p in student.items()}
    taught = {name: p.detach().clone() for name, p in teacher.items()}
    optimizer, progress = make_optimizer(method, "adamw", 1e-3), Progress(0, 10, 5)

    step = method(batch, progress)
    step.loss.backward()
    method.before_optimizer(progress)
    assert step.loss.isfinite()
    assert clip_gradients(student.values(), 3.0, True).isfinite()
    optimizer.step()
    method.after_step(progress)

    reached = {name for name, p in student.items() if p.grad is not None and p.grad.abs().max() > 1e-12}
    moved = {name for name, p in student.items() if not torch.equal(p, before[name])}
    stem = next(name for name, p in student.items() if p.ndim == 4 or "patch_embed" in name)
    assert stem in reached, "the loss is felt by the layer that sees the pixels"
    assert moved >= reached
    for name in moved:
        expected = MOMENTUM * taught[name] + (1 - MOMENTUM) * student[name]
        torch.testing.assert_close(teacher[name], expected.detach(), rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(teacher[name], taught[name]) for name in moved)
