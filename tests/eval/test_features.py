"""extract() against torchvision's transforms and plain timm, and what it leaves behind."""

import logging

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms import v2

from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError
from ssl_vit.eval.features import evaluating, extract
from ssl_vit.eval.readout import Readout
from tests.eval.conftest import MEAN, STD, folder_of


def features_of(backbone, path, workers=0, batch_size=16, **options):
    readout = Readout(32, MEAN, STD, batch_size=batch_size)
    return extract(backbone, open_source(path), readout, device="cpu", workers=workers, **options)


def test_equals_pillow_torchvision_and_plain_timm(vit, run, images):
    found = features_of(vit, images / "val")
    model = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).eval()
    transform = v2.Compose(
        [
            v2.Resize(37, v2.InterpolationMode.BICUBIC),  # 32 * 256 / 224
            v2.CenterCrop(32),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    pictures = [Image.open(images / "val" / name).convert("RGB") for name in found.files]
    with torch.inference_mode():
        expected = model(torch.stack([transform(picture) for picture in pictures])).numpy()
    assert found.features.dtype == np.float32
    # Pillow and torch round the resized bytes differently here and there; other images are 0.3 and more apart.
    assert np.abs(found.features - expected).max() < 0.03 * np.abs(expected).max()
    assert found.labels.tolist() == [0] * 15 + [1] * 15 + [2] * 15
    assert found.files[15] == "birch/000.png"


def test_the_same_for_any_number_of_workers_and_any_batch(vit, images):
    one, two = features_of(vit, images / "val"), features_of(vit, images / "val", workers=2)
    np.testing.assert_array_equal(one.features, two.features)
    assert one.files == two.files
    other = features_of(vit, images / "val", batch_size=7)
    np.testing.assert_allclose(one.features, other.features, rtol=1e-4, atol=1e-5)


def test_bad_images_are_named_and_left_out(vit, tmp_path, caplog):
    folder_of(tmp_path, 4)
    (tmp_path / "birch" / "001.jpg").write_bytes(b"no picture")
    whole = (tmp_path / "cedar" / "003.jpg").read_bytes()
    (tmp_path / "cedar" / "003.jpg").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        found = features_of(vit, tmp_path)
    assert "birch/001.jpg" in caplog.text
    assert "cedar/003.jpg" in caplog.text
    assert len(found.features) == len(found.labels) == len(found.files) == 10
    assert found.side.left_out == 2
    assert not {"birch/001.jpg", "cedar/003.jpg"} & set(found.files)
    assert np.bincount(found.labels).tolist() == [4, 3, 3]


def test_no_readable_image_is_an_error(vit, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="none of the 1 images could be read"):
        features_of(vit, tmp_path)


def test_every_module_gets_its_own_mode_back(vit, images):
    vit.train()
    vit.model.blocks[0].eval()  # frozen
    before = {name: module.training for name, module in vit.named_modules()}
    features_of(vit, images / "val")
    assert {name: module.training for name, module in vit.named_modules()} == before
    assert len(set(before.values())) == 2
    vit.eval()


def test_training_goes_on_after_an_extraction(vit, images):
    features_of(vit, images / "val")
    vit.train()
    vit(torch.rand(2, 3, 32, 32)).pooled.sum().backward()
    assert all(parameter.grad is not None for parameter in vit.model.parameters())
    vit.zero_grad(set_to_none=True)
    vit.eval()


def test_tables_kept_in_evaluation_mode_follow_the_weights():
    """LeViT keeps its attention biases while it is in evaluation mode, even when the weights then change."""
    model = timm.create_model("levit_128s", num_classes=0).eval()
    image = torch.rand(1, 3, 224, 224)
    with evaluating(model), torch.inference_mode():
        model(image)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attention_biases" in name:
                parameter.normal_(std=2)
    fresh = timm.create_model("levit_128s", num_classes=0).eval()
    fresh.load_state_dict(model.state_dict())
    with evaluating(model), torch.inference_mode():
        torch.testing.assert_close(model(image), fresh(image))
    assert not model.training
