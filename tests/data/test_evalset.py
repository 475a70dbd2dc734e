"""Evaluation images against torchvision's own transforms on Pillow images."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from ssl_vit.data.evalset import EvalDataset, EvalLoader
from ssl_vit.data.sources import open_source
from ssl_vit.errors import RunFailed
from tests.data.photo import photo, save_photos


@pytest.mark.parametrize("shape", [(90, 120), (121, 77), (64, 64), (20, 33)])
@pytest.mark.parametrize(("size", "resize", "side"), [(56, None, 64), (48, 48, 48), (32, 41, 41)])
def test_resize_and_crop_are_torchvisions(tmp_path, shape, size, resize, side):
    Image.fromarray(photo(*shape)).save(tmp_path / "x.png")
    theirs = Compose([Resize(side, InterpolationMode.BICUBIC), CenterCrop(size)])
    expected = np.asarray(theirs(Image.fromarray(photo(*shape))), dtype=float)
    image = EvalDataset(open_source(tmp_path), size, resize)[0].image
    assert image.dtype == torch.uint8
    assert image.shape == (3, size, size)
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).mean() < 0.1


def labelled(tmp_path):
    save_photos(tmp_path / "a", 5)
    save_photos(tmp_path / "b", 4)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_all_in_order_and_leaves_out_what_is_bad(tmp_path, workers, caplog):
    root = labelled(tmp_path)
    for name in ("a/002.png", "b/001.png", "b/002.png", "b/003.png"):
        (root / name).write_bytes(b"no image")
    loader = EvalLoader(EvalDataset(open_source(root), 28), 3, workers, max_bad=0.5)
    with caplog.at_level(logging.WARNING, "ssl_vit.data"):
        read = [batch for _ in range(2) for batch in loader]
    assert [batch.index.tolist() for batch in read] == [[0, 1], [3, 4, 5], []] * 2
    assert [batch.unread.tolist() for batch in read] == [[2], [], [6, 7, 8]] * 2
    assert [batch.labels.tolist() for batch in read] == [[0, 0], [0, 0, 1], []] * 2
    assert [record.getMessage().split()[0] for record in caplog.records] == [
        "a/002.png", "b/001.png", "b/002.png", "b/003.png",
    ]  # fmt: skip
    assert all("left out" in record.getMessage() for record in caplog.records)
    assert torch.equal(read[1].images[2], EvalDataset(open_source(root), 28)[5].image)


def test_too_many_bad_images(tmp_path):
    root = labelled(tmp_path)
    (root / "a" / "002.png").write_bytes(b"no image")
    with pytest.raises(RunFailed, match=r"1 of 9 images \(11.1%\).*a/002.png"):
        list(EvalLoader(EvalDataset(open_source(root), 28), 3))


def test_without_classes_labels_are_minus_one(tmp_path):
    save_photos(tmp_path, 2)
    (batch,) = EvalLoader(EvalDataset(open_source(tmp_path), 28), 8)
    assert batch.labels.tolist() == [-1, -1]


def test_resize_below_the_crop_is_refused(tmp_path):
    save_photos(tmp_path, 1)
    with pytest.raises(ValueError, match="resize 20 is smaller than size 28"):
        EvalDataset(open_source(tmp_path), 28, 20)
