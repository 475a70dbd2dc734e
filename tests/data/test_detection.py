"""Boxes stay on their objects whatever is done to the image: objects are painted, and looked for on the canvas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vit.data.annotations import Annotations, Raw
from ssl_vit.data.detection import DetectionDataset
from ssl_vit.data.scenes import scenes_in_order, share_of, training_scenes
from ssl_vit.errors import RunFailed

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """Images of several shapes with a red and a green rectangle each; the outline of the red one is known."""
    root = tmp_path_factory.mktemp("painted")
    found = Annotations(str(root), ("red", "green"), outlined=True)
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(120, 200), (200, 90), (64, 64), (150, 150), (90, 91), (300, 120)]):
        pixels = np.zeros((height, width, 3), np.uint8)
        raw = []
        for label, colour in enumerate((RED, GREEN)):
            x, y = int(rng.integers(width // 3)) + label * width // 2, int(rng.integers(height // 2))
            right, bottom = min(width, x + width // 3), y + height // 3
            pixels[y:bottom, x:right] = colour
            ring = np.array([[x, y], [right, y], [right, bottom], [x, bottom]], np.float32)
            raw.append(Raw("", (x, y, right, bottom), label, outline=(ring,)))
        Image.fromarray(pixels).save(root / f"{i}.png")
        found.add(f"{i}.png", (height, width), lambda _, raw=raw: raw)
    return found


def _bounds(image, channel):
    """What is painted in a colour, as corners; None if nothing is."""
    ys, xs = np.nonzero(image[channel].numpy() > 127)
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None


@pytest.mark.parametrize("training", [False, True])
def test_boxes_are_where_the_objects_are(painted, training):
    dataset, seen, flips = DetectionDataset(painted, 96, training=training, masks=True), 0, set()
    for epoch in range(8 if training else 1):
        for index in range(len(dataset)):
            scene = dataset[epoch, index]
            for box, label, mask in zip(scene.boxes, scene.labels, scene.masks, strict=True):
                found = _bounds(scene.image, int(label))
                assert found is not None
                np.testing.assert_allclose(box, found, atol=1.01)
                np.testing.assert_allclose(_bounds(mask[None] * 255, 0), found, atol=1.01)
                seen += 1
            if len(scene.labels) == 2:
                centres = {int(label): float(box[0]) for label, box in zip(scene.labels, scene.boxes, strict=True)}
                flips.add(centres[0] > centres[1])
            assert scene.image[:, scene.extent[0] :].sum() == scene.image[:, :, scene.extent[1] :].sum() == 0
    assert seen > (60 if training else 11)
    assert flips == ({True, False} if training else {False})


def test_the_scale_leads_back_to_the_original(painted):
    dataset = DetectionDataset(painted, 96, training=False)
    for index in range(len(dataset)):
        scene = dataset[0, index]
        back = scene.boxes / torch.tensor(scene.scale).repeat(2)
        torch.testing.assert_close(back, torch.from_numpy(painted.objects[index].boxes))


def test_batches_do_not_depend_on_workers(painted):
    dataset = DetectionDataset(painted, 48, training=True, seed=3)
    chosen = share_of(len(painted), 0.7, seed=3)
    runs = [
        list(training_scenes(dataset, chosen, batch_size=2, steps=6, seed=3, workers=workers)) for workers in (0, 1)
    ]
    for first, second in zip(*runs, strict=True):
        assert [s.index for s in first] == [s.index for s in second]
        assert all(torch.equal(a.image, b.image) for a, b in zip(first, second, strict=True))
    assert {s.index for scenes in runs[0] for s in scenes} == set(chosen.tolist())


def test_smaller_shares_lie_within_larger_ones():
    small, large = set(share_of(1000, 0.01, 5).tolist()), set(share_of(1000, 0.1, 5).tolist())
    assert (len(small), len(large)) == (10, 100)
    assert small < large
    assert large != set(share_of(1000, 0.1, 6).tolist())


def test_crowds_are_not_learnt(painted):
    objects = painted.objects[0]
    objects = objects._replace(crowd=np.array([True, False]))
    painted = replace(painted, files=painted.files[:1], sizes=painted.sizes[:1], objects=[objects])
    assert 0 not in DetectionDataset(painted, 400, training=True)[0, 0].labels
    assert DetectionDataset(painted, 400, training=False)[0, 0].labels.tolist() == [0, 1]


def test_unreadable_images_are_named_and_left_out(painted, tmp_path):
    """What can't be read when it is listed, and what is broken by the time that it is decoded."""
    found = Annotations(str(tmp_path), ("thing",))
    for name in ("good.png", "bad.png", "resized.png", "later.png"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    (tmp_path / "bad.png").write_bytes(b"nothing")
    for name in ("good.png", "bad.png", "resized.png", "later.png"):
        found.add(name, (20, 20) if name == "resized.png" else (10, 20), lambda _: [Raw("", (1, 1, 5, 5), 0)])
    assert found.unreadable["resized.png"] == "20 x 10 pixels, annotated as 20 x 20"
    assert set(found.unreadable) == {"bad.png", "resized.png"}
    Image.new("RGB", (10, 20)).save(tmp_path / "later.png")
    dataset = DetectionDataset(found, 32, training=False)
    loader = scenes_in_order(dataset, batch_size=1, max_bad=0.5)
    assert [[s.index for s in scenes] for scenes in loader] == [[0], []]
    assert loader.bad.files == {"later.png": "10 x 20 pixels, annotated as 20 x 10"}
    with pytest.raises(RunFailed, match="or raise --max-bad"):
        list(scenes_in_order(dataset, batch_size=1))
