"""mAP against pycocotools, whose numbers on the same boxes are stored here; and against two cases done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_vit.data.annotations import Objects
from ssl_vit.detectors.detector import Detections
from ssl_vit.eval.mean_ap import MeanAP, mean_average_precision

# pycocotools on `scene()`, stats 0 to 5 (main of this file prints them)
PYCOCOTOOLS = (
    *(0.23852284450467084, 0.4341832859054787, 0.24344715691608237),
    *(0.11519520702070207, 0.2449164021371858, 0.5639909437372308),
)


def scene(images=40, classes=4):
    """Objects of all sizes, some crowds; most are found, not quite where they are, among others that aren't there."""
    rng = np.random.default_rng(0)
    wanted, found = [], []
    for _ in range(images):
        n = int(rng.integers(0, 7))
        boxes, labels = _boxes(rng, n), rng.integers(classes, size=n)
        crowd = rng.random(n) < 0.1
        wanted.append(
            Objects(boxes, labels, crowd, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), (None,) * n)
        )
        near = boxes + rng.normal(0, 4, boxes.shape).astype(np.float32)
        kept = rng.random(n) < 0.8
        extra = _boxes(rng, 4)
        said = np.concatenate([np.where(rng.random(n) < 0.9, labels, 0)[kept], rng.integers(classes, size=4)])
        scores = np.concatenate([0.3 + 0.7 * rng.random(kept.sum()), 0.6 * rng.random(4)])
        corners = np.concatenate([near[kept], extra])
        found.append(Detections(torch.from_numpy(corners), torch.from_numpy(scores), torch.from_numpy(said)))
    return found, wanted


def _boxes(rng, n):
    size = np.exp(rng.uniform(np.log(12), np.log(250), (n, 2)))
    start = rng.uniform(0, 300, (n, 2))
    return np.concatenate([start, start + size], 1).astype(np.float32)


def pycocotools_stats(found, wanted):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        left, top, right, bottom = (float(value) for value in box)
        return [left, top, right - left, bottom - top]

    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(len(wanted))],
        "categories": [{"id": c} for c in range(4)],
        "annotations": [
            {"image_id": i, "category_id": int(label), "bbox": xywh(box), "area": float(area), "iscrowd": int(crowd)}
            for i, objects in enumerate(wanted)
            for box, label, crowd, area in zip(objects.boxes, objects.labels, objects.crowd, objects.areas, strict=True)
        ],
    }
    for number, annotation in enumerate(truth.dataset["annotations"], start=1):
        annotation["id"] = number
    truth.createIndex()
    detections = [
        {"image_id": i, "category_id": int(label), "bbox": xywh(box), "score": float(np.float32(score))}
        for i, image in enumerate(found)
        for box, score, label in zip(image.boxes, image.scores, image.labels, strict=True)
    ]
    judge = COCOeval(truth, truth.loadRes(detections), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return [float(value) for value in judge.stats[:6]]


def test_equals_pycocotools():
    np.testing.assert_allclose(np.array(mean_average_precision(*scene())) / 100, PYCOCOTOOLS, atol=1e-4)


def _one(boxes, scores, wanted):
    objects = np.array(wanted, np.float32).reshape(-1, 4)
    areas = (objects[:, 2] - objects[:, 0]) * (objects[:, 3] - objects[:, 1])
    n = len(objects)
    truth = Objects(objects, np.zeros(n, np.int64), np.zeros(n, bool), areas, (None,) * n)
    found = Detections(
        torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.zeros(len(scores), dtype=torch.int64)
    )
    return mean_average_precision([found], [truth])


def test_a_box_half_right_counts_up_to_its_overlap():
    """IoU 0.82 is enough for the thresholds 0.5, 0.55 … 0.8 alone: 7 of 10."""
    scores = _one([[0.0, 0.0, 100.0, 82.0]], [0.9], [[0, 0, 100, 100]])
    assert (scores.map, scores.map50, scores.map75) == pytest.approx((70.0, 100.0, 100.0), abs=1e-4)
    assert np.isnan(scores.small)


@pytest.mark.parametrize(("right", "points"), [(6, 61), (7, 70), (8, 81)])
def test_a_recall_on_a_threshold_counts_as_cocos_own(right, points):
    """Of ten objects so many are found, and nothing else: precision 1 at so many of COCO's 101 points.

    In float64, as COCO has them, the point 0.7 lies a little above the recall 7/10; 0.6 and 0.8 don't.
    """
    boxes, one = np.array([[0, 0, 50, 50]], np.float32), np.ones(1, np.float32)
    truth = Objects(boxes, np.zeros(1, np.int64), np.zeros(1, bool), 2500 * one, (None,))
    labels = torch.zeros(1, dtype=torch.int64)
    hit = [Detections(torch.from_numpy(boxes), torch.tensor([0.9 - i / 100]), labels) for i in range(right)]
    miss = Detections(torch.empty(0, 4), torch.empty(0), labels[:0])
    scores = mean_average_precision([*hit, *[miss] * (10 - right)], [truth] * 10)
    expected = 100 * points / 101
    assert (scores.map, scores.map50, scores.map75) == pytest.approx((expected,) * 3, abs=1e-5)


def test_one_object_of_two_found():
    """Precision 1 up to a recall of one half: 51 of COCO's 101 points."""
    scores = _one([[0.0, 0.0, 50.0, 50.0]], [0.9], [[0, 0, 50, 50], [60, 60, 90, 90]])
    assert scores.map == pytest.approx(100 * 51 / 101, abs=1e-4)
    assert isinstance(scores, MeanAP)


if __name__ == "__main__":
    print(pycocotools_stats(*scene()))
