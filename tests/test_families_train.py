"""One step of every method with a model of every family: loss, gradients, optimiser, teacher; or the reason why not."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from ssl_vit.backbones import backbone_info
from ssl_vit.backbones.anatomy import PLAIN_FAMILIES
from ssl_vit.config import RunConfig, load_config
from ssl_vit.errors import UserError
from ssl_vit.methods import config_class, list_methods
from ssl_vit.methods.dino import DINO
from ssl_vit.methods.method import Method
from ssl_vit.run.facts import Facts
from ssl_vit.run.plan import resolve_config
from ssl_vit.run.prepare import build_method
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.speed import wants_channels_last
from ssl_vit.training.step import Learner, ReadyViews, take_step
from tests.families import COSTLY, cheapest
from tests.methods.settings import NEEDED, SMALL

IMAGES, MOMENTUM = 4, 0.9
STEP = {"optim.optimizer": "adamw", "optim.lr": 1e-3, "optim.warmup_epochs": 0.0, "optim.clip": 3.0}
FACTS = {"images": 1000, "colours": lambda: ((0.5,) * 3, (0.2,) * 3), "gpus": 0, "cpus": 1, "bfloat16": False}
# One of each kind; with DINO all families are quick enough for every run of the tests but the costly ones.
QUICK = {"vision_transformer", "deit", "swin_transformer", "resnet", "convnext", "mlp_mixer", "pvt_v2", "volo"}


def small(family: str) -> tuple[str, int, dict[str, Any]]:
    """Name, size and arguments of the family's cheapest model; 64 pixels where it is not made smaller yet."""
    name, kwargs = cheapest()[family]
    args = kwargs.get("model_args", {})
    if "image_size" in kwargs:
        return name, kwargs["image_size"], args
    info = backbone_info(name, model_args=args)
    smallest = -(-64 // info.multiple) * info.multiple
    return name, smallest if info.any_size else info.size[0], args


def resolved(method: str, family: str, **more: object) -> RunConfig:
    """What a run of the family's model on a thousand small images would be, with a tiny head; more: by key."""
    name, size, args = small(family)
    info = backbone_info(name, image_size=size, model_args=args)
    while info.grid == (1, 1) and info.any_size and config_class(method).masks:  # nothing to hide a part of
        size += info.multiple
        info = backbone_info(name, image_size=size, model_args=args)
    settings = dict(SMALL[method])
    if "local_size" in settings:
        settings["local_size"] = size + info.multiple if info.any_size else size  # as smaller ones may be too small
    if method == "moby":
        settings["queue_size"] = 4 * IMAGES
    if method in NEEDED:  # a loss so small that no gradient is clipped, and each moves what it reaches
        settings |= {key: 0.01 for key in config_class(method).model_fields if key.endswith("_weight")}
    if method in ("ibot", "dinov2"):
        settings["mask_ratio"] = (0.3, 0.6)
    flags = {
        "data.path": "nowhere",
        "backbone.name": name,
        "backbone.image_size": size,
        "backbone.args": {key: list(value) if isinstance(value, tuple) else value for key, value in args.items()},
        "method.name": method,
        "train.batch_size": IMAGES,
    }
    flags |= {f"method.{key}": value for key, value in settings.items()}
    return resolve_config(load_config(flags=flags | more), Facts(side=size, **FACTS))[0]


def cases() -> list[object]:
    return [
        pytest.param(
            method,
            family,
            id=f"{method}-{family}",
            marks=[] if family in QUICK or (method == "dino" and family not in COSTLY) else [pytest.mark.slow],
        )
        for method in list_methods()
        for family in sorted(cheapest())
    ]


def parts_of(method: Method) -> tuple[dict[str, torch.nn.Parameter], dict[str, torch.nn.Parameter]]:
    """What is trained, by name; and the backbone's share of it."""
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    backbone = method.student.backbone if hasattr(method, "student") else method.exported()
    own = {id(p) for p in backbone.parameters()}
    return trained, {name: p for name, p in trained.items() if id(p) in own}


def one_step(learner: Learner, batch: list[torch.Tensor], number: int) -> tuple[set[str], set[str]]:
    """Names of the weights that got a gradient, and of those that moved."""
    trained, _ = parts_of(learner.method)
    before = {key: p.detach().clone() for key, p in trained.items()}
    reached: set[str] = set()

    def note(key: str, p: torch.Tensor) -> None:
        if p.grad is not None and p.grad.abs().max() > 1e-12:
            reached.add(key)

    hooks = [p.register_post_accumulate_grad_hook(partial(note, key)) for key, p in trained.items()]
    outcome = take_step(learner, ReadyViews(batch), number)
    for hook in hooks:
        hook.remove()
    assert outcome.taken
    assert math.isfinite(outcome.loss)
    return reached, {key for key, p in trained.items() if not torch.equal(p, before[key])}


@pytest.mark.parametrize(("name", "family"), cases())
def test_one_step(name: str, family: str) -> None:
    model, _, _ = small(family)
    plain_only = config_class(name).plain_only
    if plain_only and family not in PLAIN_FAMILIES:
        with pytest.raises(UserError, match=f"{name} can't pretrain {model}: it is {plain_only}"):
            resolved(name, family)
        return
    torch.manual_seed(0)
    config = resolved(name, family, **STEP)
    method = build_method(config)
    plan = method.views()
    format_ = torch.channels_last if wants_channels_last(method.exported().info) else torch.contiguous_format
    shapes = [(view.count * IMAGES, 3, view.size, view.size) for view in plan.views]
    batch = [torch.randn(shape).to(memory_format=format_) for shape in shapes]
    if plan.boxes:
        batch.append(torch.tensor([0.1, 0.2, 0.6, 0.9]).expand(IMAGES, plan.boxes, 4))
    trained, backbone = parts_of(method)
    before = {key: p.detach().clone() for key, p in method.named_parameters()}
    seeing = [key for key, p in backbone.items() if p.ndim == 4 or "patch_embed" in key]
    assert seeing or name in ("mocov3", "detreg"), "only they leave the patch embedding as it was drawn"
    learner = Learner(new_fabric(config.train), method, config, per_epoch=5, total=10)

    reached, moved = one_step(learner, batch, 0)
    assert moved >= reached
    after = dict(method.named_parameters())
    if isinstance(method, DINO):
        for key in moved & {f"student.{rest}" for rest, _ in method.teacher.named_parameters()}:
            taught = key.replace("student.", "teacher.", 1)
            expected = MOMENTUM * before[taught] + (1 - MOMENTUM) * trained[key]
            assert torch.allclose(after[taught], expected, rtol=1e-5, atol=1e-7), taught
    teachers = [key for key in after if key.startswith("teacher.backbone.")]
    assert not teachers or any(not torch.equal(after[key], before[key]) for key in teachers), "the teacher follows"
    if seeing and seeing[0] not in reached:  # a Swin v2's blocks begin as the identity: hidden patches see nothing else
        reached, _ = one_step(learner, batch, 1)
    assert not seeing or seeing[0] in reached, "the loss is felt by the layer that sees the pixels"
