"""Matching and losses against brute force, and against the code of transformers."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers.loss import loss_deformable_detr as hf_deformable
from transformers.loss import loss_for_object_detection as hf

from ssl_vit.detectors.detector import Predictions, best
from ssl_vit.detectors.losses import GroundTruth, SetLoss

CLASSES, QUERIES = 5, 7


def make(seed=0, focal=True, counts=(3, 0, 4)):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(counts), QUERIES, CLASSES + (not focal), generator=rng)
    boxes = _boxes(len(counts) * QUERIES, rng).view(len(counts), QUERIES, 4)
    earlier = ((torch.randn(logits.shape, generator=rng), _boxes(len(counts) * QUERIES, rng).view_as(boxes)),)
    targets = [GroundTruth(_boxes(n, rng), torch.randint(CLASSES, (n,), generator=rng)) for n in counts]
    return Predictions(logits.requires_grad_(), boxes, earlier), targets


def _boxes(n, rng):
    size = 0.05 + 0.4 * torch.rand(n, 2, generator=rng)
    return torch.cat([size / 2 + (1 - size) * torch.rand(n, 2, generator=rng), size], 1)


def official(focal, predictions, targets, classes=CLASSES):
    """transformers' matcher and losses of one layer, weighted as the papers weight them."""
    weight = 2.0 if focal else 1.0
    costs = {"class_cost": weight, "bbox_cost": 5.0, "giou_cost": 2.0}
    if focal:
        loss = hf_deformable.DeformableDetrImageLoss(
            hf_deformable.DeformableDetrHungarianMatcher(**costs), classes, 0.25, ["labels", "boxes"]
        )
    else:
        loss = hf.ImageLoss(hf.HungarianMatcher(**costs), classes, 0.1, ["labels", "boxes"])
    wanted = [{"boxes": target.boxes, "class_labels": target.labels} for target in targets]
    parts = loss({"logits": predictions[0], "pred_boxes": predictions[1]}, wanted)
    return {"class": weight * parts["loss_ce"], "l1": 5 * parts["loss_bbox"], "giou": 2 * parts["loss_giou"]}


@pytest.mark.parametrize("focal", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_every_part_equals_transformers(focal, seed):
    predictions, targets = make(seed, focal)
    parts = SetLoss.of(focal)(predictions, targets)
    layers = [(predictions.logits, predictions.boxes), *predictions.earlier]
    expected = [official(focal, layer, targets) for layer in layers]
    for name in ("class", "l1", "giou"):
        torch.testing.assert_close(parts[name], sum(part[name] for part in expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("focal", [True, False])
def test_matching_is_the_cheapest_of_all(focal):
    """Against all ways to give four objects to seven queries, priced pair by pair."""
    predictions, targets = make(4, focal, counts=(4,))
    loss = SetLoss.of(focal)
    [(query, own)] = loss.match(predictions.logits, predictions.boxes, targets)
    logits, boxes = predictions.logits.detach()[0], predictions.boxes[0]

    def price(q, t):
        said = Predictions(logits[None, q : q + 1], boxes[None, q : q + 1])
        target = GroundTruth(targets[0].boxes[t : t + 1], targets[0].labels[t : t + 1])
        box = 5 * (said.boxes[0, 0] - target.boxes[0]).abs().sum() + _giou_price(said.boxes[0, 0], target.boxes[0])
        p = logits[q].sigmoid()[target.labels[0]] if focal else logits[q].softmax(0)[target.labels[0]]
        return float(box + (2 * (-0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log()) if focal else -p))

    table = [[price(q, t) for t in range(4)] for q in range(QUERIES)]
    cheapest = min(sum(table[q][t] for t, q in enumerate(taken)) for taken in itertools.permutations(range(QUERIES), 4))
    assert sum(table[q][t] for q, t in zip(query, own, strict=True)) == pytest.approx(cheapest, abs=1e-5)


def _giou_price(a, b):
    """-2 GIoU from its definition (arXiv 1902.09630)."""
    (ax0, ay0), (ax1, ay1) = a[:2] - a[2:] / 2, a[:2] + a[2:] / 2
    (bx0, by0), (bx1, by1) = b[:2] - b[2:] / 2, b[:2] + b[2:] / 2
    both = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    union = a[2] * a[3] + b[2] * b[3] - both
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return -2 * (both / union - (hull - union) / hull)


def test_only_the_last_layers_matches_are_embedded():
    predictions, targets = make(1)
    rng = torch.Generator().manual_seed(5)
    predictions = predictions._replace(embeddings=torch.randn(3, QUERIES, 6, generator=rng))
    targets = [t._replace(embeddings=torch.randn(len(t.labels), 6, generator=rng)) for t in targets]
    loss = SetLoss.of(focal=True)
    pairs = loss.match(predictions.logits, predictions.boxes, targets)
    differences = [
        (predictions.embeddings[i, q] - targets[i].embeddings[t]).abs()
        for i, (queries, objects) in enumerate(pairs)
        for q, t in zip(queries.tolist(), objects.tolist(), strict=True)
    ]
    torch.testing.assert_close(loss(predictions, targets)["embedding"], torch.stack(differences).mean())


def test_a_batch_without_objects_still_teaches_that_nothing_is_there():
    predictions, targets = make(2, counts=(0, 0))
    predictions = predictions._replace(embeddings=torch.ones(2, QUERIES, 6))
    targets = [t._replace(embeddings=torch.empty(0, 6)) for t in targets]
    parts = SetLoss.of(focal=True)(predictions, targets)
    assert parts["l1"] == parts["giou"] == parts["embedding"] == 0
    sum(parts.values()).backward()
    assert (predictions.logits.grad > 0).all()


def test_a_diverged_network_gives_nan_and_not_an_error():
    predictions, targets = make(3)
    parts = SetLoss.of(focal=True)(Predictions(predictions.logits * float("nan"), predictions.boxes), targets)
    assert parts["class"].isnan()


def test_best_softmax_query():
    logits = torch.tensor([[[0.0, 5.0, 1.0], [3.0, 0.0, 9.0], [4.0, 0.0, 0.0]]])  # the last column is "nothing"
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1], [0.25, 0.75, 0.5, 0.5]]])
    [found] = best(Predictions(logits, boxes), torch.tensor([[100, 200]]), focal=False, count=2)
    assert found.labels.tolist() == [1, 0]
    torch.testing.assert_close(found.scores, torch.stack([logits[0, 0].softmax(0)[1], logits[0, 2].softmax(0)[0]]))
    torch.testing.assert_close(found.boxes, torch.tensor([[80.0, 30.0, 120.0, 70.0], [0.0, 50.0, 100.0, 100.0]]))


def test_a_query_may_give_two_classes_with_sigmoids():
    logits = torch.tensor([[[2.0, 3.0], [-4.0, -5.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]]])
    [found] = best(Predictions(logits, boxes), torch.tensor([[10, 10]]), focal=True, count=3)
    assert found.labels.tolist() == [1, 0, 0]
    assert found.boxes[:, 2].tolist() == [10.0, 10.0, 7.5]


def test_two_processes_average_to_what_one_has(monkeypatch):
    """Where their images have different numbers of objects: each part is divided by what all have."""
    predictions, targets = make(6, counts=(4, 1, 3, 0))
    rng = torch.Generator().manual_seed(7)
    predictions = predictions._replace(embeddings=torch.randn(4, QUERIES, 6, generator=rng))
    targets = [t._replace(embeddings=torch.randn(len(t.labels), 6, generator=rng)) for t in targets]
    loss = SetLoss.of(focal=True)
    whole = loss(predictions, targets)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.fill_(8.0))
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        earlier = tuple((logits[part], boxes[part]) for logits, boxes in predictions.earlier)
        own = Predictions(predictions.logits[part], predictions.boxes[part], earlier, predictions.embeddings[part])
        halves.append(loss(own, targets[part]))
    for name, value in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, value)
