"""DETReg's targets and loss in float64, what its numbers say, and that the backbone stays as it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.detectors.detector import Predictions
from ssl_vit.detectors.losses import GroundTruth
from ssl_vit.errors import UserError
from ssl_vit.methods.base_config import Situation
from ssl_vit.methods.detreg import DETReg, measured
from ssl_vit.methods.detreg_config import Config
from ssl_vit.methods.method import Progress
from ssl_vit.run.prepare import build_method
from ssl_vit.training.advice import advice_for
from ssl_vit.training.health import Vitals, diagnose
from ssl_vit.training.optim import make_optimizer, set_hyperparameters
from tests.detectors.test_losses import official
from tests.methods.small import Patchy
from tests.test_families_train import resolved

START = Progress(0, 100, 10)
BOXES = torch.tensor([[0.1, 0.2, 0.5, 0.7], [0.3, 0.3, 0.9, 0.8], [0.0, 0.5, 0.4, 1.0]])


def small(detector="deformable_detr", **settings):
    return Config(detector=detector, boxes=3, queries=6, dim=64, depth=2, hidden=48, **{"crop_size": 16} | settings)


def method(detector="deformable_detr", backbone="resnet10t", **settings):
    torch.manual_seed(0)
    return DETReg(small(detector, **settings), create_backbone(backbone), 64)


def batch(images=3):
    g = torch.Generator().manual_seed(1)
    boxes = torch.stack([BOXES, BOXES.flip(0), BOXES])[:images].clone()
    boxes[0, 2] = torch.nan
    return [torch.randn(images, 3, 64, 64, generator=g), boxes]


def sampled(image, box, side):
    """A box of an image [3, H, W] as side x side bins, each the mean of bilinear samples a pixel apart or less."""
    size = image.shape[-1]
    left, top, right, bottom = (size * float(v) for v in box)
    rows, columns = (bottom - top) / side, (right - left) / side
    n, m = math.ceil(rows), math.ceil(columns)
    out = np.zeros((3, side, side))
    for i in range(side):
        for j in range(side):
            for a in range(n):
                for b in range(m):
                    y = top + rows * (i + (a + 0.5) / n) - 0.5
                    x = left + columns * (j + (b + 0.5) / m) - 0.5
                    y, x = min(max(y, 0.0), size - 1.0), min(max(x, 0.0), size - 1.0)
                    for v in {int(y), min(int(y) + 1, size - 1)}:
                        for u in {int(x), min(int(x) + 1, size - 1)}:
                            if abs(y - v) < 1 and abs(x - u) < 1:
                                share = (1 - abs(y - v)) * (1 - abs(x - u))
                                out[:, i, j] += share * image[:, v, u] / (n * m)
    return out


def test_the_target_is_what_the_backbone_says_of_the_region_resized():
    """The crop by loops over bins and samples, then the backbone's one linear layer and its mean, in float64."""
    torch.manual_seed(0)
    learner = DETReg(small(crop_size=4), Patchy().double(), 8).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    boxes = torch.tensor([[[0.1, 0.2, 0.85, 0.7], [0.25, 0.0, 1.0, 1.0]], [[0.0, 0.0, 0.5, 0.5], [torch.nan] * 4]])
    targets = learner.targets(images, boxes)
    assert [len(target.boxes) for target in targets] == [2, 1]
    torch.testing.assert_close(targets[0].boxes[0], torch.tensor([0.475, 0.45, 0.75, 0.5]))
    weight, bias = (
        p.detach().numpy() for p in (learner.network.backbone.linear.weight, learner.network.backbone.linear.bias)
    )
    for image, target, rows in zip(images, targets, boxes, strict=True):
        for vector, box in zip(target.embeddings, rows, strict=False):
            crop = sampled(image.numpy(), box.numpy(), 4)
            cells = crop.reshape(3, 2, 2, 2, 2).transpose(1, 3, 0, 2, 4).reshape(4, 12)
            np.testing.assert_allclose(vector.numpy(), (cells @ weight.T + bias).mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("detector", ["deformable_detr", "detr"])
def test_the_loss_is_the_official_one_and_the_distance_of_the_embeddings(detector):
    """Classes, L1 and GIoU of both layers by transformers' code; embeddings of the pairs that it would match."""
    learner = method(detector).eval()
    images, boxes = batch()
    step = learner([images, boxes], START)
    said, targets = learner.network(images), learner.targets(images, boxes)
    layers = [(said.logits, said.boxes), *said.earlier]
    theirs = [official(learner.loss.focal, layer, targets, classes=1) for layer in layers]
    expected = sum(value for layer in theirs for value in layer.values())
    pairs = learner.loss.match(said.logits, said.boxes, targets)
    apart = [
        (said.embeddings[i, q].double() - targets[i].embeddings[t].double()).abs().mean()
        for i, (queries, objects) in enumerate(pairs)
        for q, t in zip(queries.tolist(), objects.tolist(), strict=True)
    ]
    assert len(apart) == 8
    assert step.loss.item() == pytest.approx(expected.item() + torch.stack(apart).mean().item(), rel=1e-5)
    assert sum(
        v.item() for k, v in step.parts.items() if k in ("class_loss", "l1_loss", "giou_loss", "embedding_loss")
    ) == (pytest.approx(step.loss.item(), rel=1e-5))


def test_not_to_look_costs_what_the_same_answers_cost_for_other_images():
    learner = method().eval()
    images, boxes = batch()
    same = [images[:1].expand(3, -1, -1, -1), boxes[1:2].expand(3, -1, -1)]
    step = learner(same, START)
    assert step.parts["blind_loss"].item() == pytest.approx(step.loss.item(), rel=1e-5)
    targets = [
        GroundTruth(torch.tensor([[0.25, 0.25, 0.3, 0.3]]), torch.tensor([0]), torch.ones(1, 2)),
        GroundTruth(torch.tensor([[0.75, 0.75, 0.3, 0.3]]), torch.tensor([0]), torch.zeros(1, 2)),
    ]
    seeing = Predictions(
        torch.zeros(2, 1, 1), torch.stack([t.boxes for t in targets]), (), torch.stack([t.embeddings for t in targets])
    )
    own, blind = sum(learner.loss(seeing, targets).values()), learner.blind(seeing, targets)["loss"]
    # Half the image away both ways: L1 1 times 5, no embedding in common, GIoU -(0.64 - 0.18) / 0.64 instead of 1.
    assert blind.item() - own.item() == pytest.approx(5 + 1 + 2 * (1 + 0.46 / 0.64), rel=1e-5)
    assert "blind_loss" not in learner([images[:1], boxes[:1]], START).parts, "there is no other image"


def test_what_is_found_of_matched_pairs():
    targets = [
        GroundTruth(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([0])),
        GroundTruth(torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]]), torch.tensor([0, 0])),
    ]
    said = torch.tensor([[[0.5, 0.5, 0.4, 0.2001], [0.0] * 4], [[0.6, 0.5, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2]]])
    pairs = [(torch.tensor([0]), torch.tensor([0])), (torch.tensor([0, 1]), torch.tensor([1, 0]))]
    parts = measured(Predictions(said[..., :1], said), targets, pairs)
    assert parts["overlap"].item() == pytest.approx((0.5 + 1 / 3 + 1.0) / 3, rel=1e-3)
    assert parts["found"].item() == pytest.approx(2 / 3)
    assert parts["regions"].item() == 1.5


@pytest.mark.parametrize("detector", ["deformable_detr", "detr"])
def test_learns_its_regions_and_leaves_the_backbone_alone(detector):
    learner = method(detector).train()
    before = {k: v.clone() for k, v in learner.exported().state_dict().items()}
    images, boxes = batch()
    optimizer, steps = make_optimizer(learner, "adamw", 1e-3), []
    for _ in range(40):
        steps.append(learner([images, boxes], START))
        optimizer.zero_grad()
        steps[-1].loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
    first, last = steps[0].parts, steps[-1].parts
    for name in ("l1_loss", "embedding_loss"):
        assert last[name] < 0.7 * first[name], name
    assert last["overlap"] > first["overlap"]
    assert steps[0].embedding.shape == (8, 512)
    after = learner.exported().state_dict()
    assert [k for k in before if not torch.equal(before[k], after[k])] == []
    assert not learner.network.backbone.training
    assert learner.network.transformer.training


def test_images_without_regions_teach_that_nothing_is_there():
    learner = method().train()
    images, boxes = batch()
    step = learner([images, torch.full_like(boxes, torch.nan)], START)
    step.loss.backward()
    assert step.loss.isfinite()
    assert step.parts["regions"] == step.parts["l1_loss"] == step.parts["embedding_loss"] == 0
    assert step.embedding is None
    unreached = [name for name, p in learner.named_parameters() if p.requires_grad and p.grad is None]
    assert unreached == [], "as DDP expects of all"
    assert learner.remark({"regions": 0.0}) == "No region was proposed; choose other method.proposals."


def test_what_places_the_samples_learns_at_a_tenth_of_the_rate():
    learner = method()
    optimizer = make_optimizer(learner, "adamw", 1.0)
    set_hyperparameters(optimizer, 2e-4, 0.3)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    for name, p in learner.named_parameters():
        if p.requires_grad:
            slow = "sampling_offsets" in name or "reference_points" in name
            decays = p.ndim > 1 and not name.endswith("bias")
            assert rates.pop(id(p)) == pytest.approx((2e-5 if slow else 2e-4, 0.3 if decays else 0.0)), name
    assert not rates


def given(**changes):
    fields = {"images": 1000, "epochs": 100, "steps": 10_000, "image_size": 128, "batch_size": 16, "dim": 192}
    fields |= {"kind": "transformer", "any_size": True, "multiple": 16, "drops_paths": True, "grid": (8, 8)}
    return Situation(**(fields | changes))


def test_the_official_recipe_on_many_images_and_a_smaller_detector_on_few():
    chosen = {key: value for key, (value, _) in Config().choose(given(images=1_281_167, image_size=224)).items()}
    assert [chosen[f"method.{key}"] for key in ("queries", "dim", "depth", "hidden", "crop_size")] == [
        300,
        256,
        6,
        1024,
        128,
    ]
    assert [chosen[f"optim.{key}"] for key in ("lr", "weight_decay", "clip")] == [2e-4, 1e-4, 0.1]
    other = {key: value for key, (value, _) in Config(detector="detr").choose(given(images=1_281_167)).items()}
    assert (other["method.queries"], other["method.hidden"], other["optim.lr"]) == (100, 2048, 1e-4)
    few = {key: value for key, (value, _) in Config().choose(given(any_size=False)).items()}
    assert (few["method.dim"], few["method.depth"], few["method.crop_size"]) == (128, 2, 128)


@pytest.mark.parametrize(
    ("settings", "situation", "said"),
    [
        ({"proposals": "patches"}, {}, "method.proposals_weights: set it with method.proposals=patches, and only then"),
        ({"proposals_weights": "file"}, {}, "method.proposals_weights: set it with method.proposals=patches"),
        ({"queries": 2}, {}, "method.queries: 2 can't find 3 regions"),
        ({"dim": 40}, {}, "method.dim: 40; set a multiple of 64"),
        ({"crop_size": 24}, {}, "method.crop_size: 24 pixels, and the backbone takes multiples of 16"),
        ({"crop_size": 64}, {"any_size": False}, "method.crop_size: 64 pixels, and the backbone takes 128 pixels only"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, situation, said):
    with pytest.raises(UserError, match=said):
        small().model_copy(update=settings).check(given(**situation))


def test_the_verdict_says_what_is_found():
    learner = method()
    parts = {"regions": 21.5, "found": 0.42, "overlap": 0.47, "blind_found": 0.08}
    history = [
        Vitals(step, 0, loss, None, 0.9, 20.0, blind_loss=9.0, remark=learner.remark(parts))
        for step, loss in ((10, 8.0), (20, 7.0), (30, 6.0))
    ]
    assert diagnose(history, {}) == (
        "learning",
        "The loss is 6.000 against 9.000 for the best guess that doesn't look; features use 20.0 effective dimensions. "
        "Of 21.5 regions an image 42 % are found (IoU 0.5 or more, 0.47 on average; by the answers for other images "
        "8 %).",
    )


def test_a_verdict_on_regions_has_advice_of_its_own():
    advice = advice_for(resolved("detreg", "resnet", **{"method.proposals": "random"}))
    blind = [Vitals(step, 0, 8.95, None, 0.9, 20.0, blind_loss=9.0) for step in (10, 20, 30)]
    assert diagnose(blind, advice).kind == "not learning yet"
    assert "set method.proposals=selective_search (now random)" in diagnose(blind, advice).sentence
    same = [Vitals(step, 0, 5.0, None, 0.0, 1.0, blind_loss=9.0) for step in (10, 20, 30)]
    assert "--weights" in diagnose(same, advice).sentence


def test_a_step_leaves_the_backbone_as_it_came() -> None:
    """Its running statistics too, which batch norms in training would move."""
    config = resolved("detreg", "resnet")
    method = build_method(config)
    before = {name: value.clone() for name, value in method.exported().state_dict().items()}
    assert any(name.endswith("running_mean") for name in before)
    images = torch.randn(4, 3, config.backbone.image_size, config.backbone.image_size)
    boxes = torch.tensor([0.1, 0.2, 0.6, 0.9]).expand(4, config.method.boxes, 4)
    method([images, boxes], Progress(0, 10, 5)).loss.backward()
    assert [name for name, value in method.exported().state_dict().items() if not value.equal(before[name])] == []
