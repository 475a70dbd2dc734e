"""BEiT against its objective (2106.08254, equation 3) written again in numpy, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.errors import UserError
from ssl_vit.methods.beit import BEiT
from ssl_vit.methods.beit_config import Config
from tests.methods.masked import START, array, every_weight_gets_a_gradient, images, linear_numpy, three_steps_equal
from tests.methods.siamese import SITUATION
from tests.methods.small import REAL, Patchy, seen_by

CODES = 12


def make(**changes) -> BEiT:
    torch.manual_seed(0)
    config = Config(**({"codes": CODES, "tokenizer_steps": 3} | changes))
    return BEiT(config, Patchy(), 8).double()


def reference(method: BEiT, batch: torch.Tensor, seed: int) -> tuple[float, np.ndarray, np.ndarray]:
    """The mean of -log p(word) over hidden patches; the logits and words there."""
    torch.manual_seed(seed)
    masks = method.draw_masks(len(batch), *method.grid).numpy()
    words = array(method.tokenizer(batch, (4, 4))).reshape(len(batch), 16)
    _, patches = seen_by(method.backbone, batch, masks)
    flat = masks.reshape(len(batch), 16)
    logits, wanted = linear_numpy(method.head, patches[flat]), words[flat]
    chosen = [np.log(np.exp(row).sum()) - row[word] for row, word in zip(logits, wanted, strict=True)]
    return float(np.mean(chosen)), logits, wanted


def test_three_steps_equal_the_formula() -> None:
    method = make()
    before = {name: value.clone() for name, value in method.tokenizer.state_dict().items()}
    watched = {"head.weight": (3, 2), "head.bias": (5,), "backbone.linear.weight": (1, 4), "backbone.token": (2,)}
    three_steps_equal(method, lambda batch, seed: reference(method, batch, seed)[0], watched)
    for name, value in method.tokenizer.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} is frozen"


def test_parts_are_what_they_say() -> None:
    method, batch = make(), images(0)
    torch.manual_seed(0)
    parts = {name: value.item() for name, value in method([batch], START).parts.items()}
    _, logits, wanted = reference(method, batch, 0)
    words = array(method.tokenizer(batch, (4, 4))).ravel()
    shares = np.bincount(words, minlength=CODES) / len(words)
    used = shares[shares > 0]
    assert parts["accuracy"] == pytest.approx((logits.argmax(1) == wanted).mean())
    assert parts["blind_loss"] == pytest.approx(-(used * np.log(used)).sum())
    assert parts["commonest"] == pytest.approx(shares.max())
    assert parts["words_used"] == len(used)
    assert f"{len(used)} of {CODES} words" in method.remark(parts)


def test_at_most_75_of_196_patches_are_hidden_in_blocks() -> None:
    method = make()
    torch.manual_seed(0)
    counts = method.draw_masks(500, 14, 14).sum((1, 2))
    assert 60 < counts.float().mean() <= counts.max() == 75


def test_the_recipe_is_the_official_one_and_another_on_small_sets() -> None:
    """Section 2.5 and the released script: 1.5e-3 for batches of 2048, weight decay 0.05, clip 3, minimum 1e-5."""
    chosen = {key: value for key, (value, _) in Config().choose(replace(SITUATION, batch_size=2048)).items()}
    assert chosen["optim.lr"] == pytest.approx(1.5e-3)
    assert chosen["optim.min_lr"] == pytest.approx(1e-5)
    assert (chosen["optim.weight_decay"], chosen["optim.clip"], chosen["optim.beta2"]) == (0.05, 3.0, 0.999)
    assert chosen["backbone.drop_path"] == 0.1
    assert chosen["method.codes"] == 8192
    few = {key: value for key, (value, _) in Config().choose(replace(SITUATION, images=2000)).items()}
    assert (few["method.codes"], few["method.tokenizer_steps"], few["backbone.drop_path"]) == (64, 400, 0.0)


def test_the_view_is_one_crop_with_the_official_colours() -> None:
    (view,) = Config().views(224).views
    assert (view.count, view.size, view.scale, view.flip_p) == (1, 224, (0.08, 1.0), 0.5)
    assert (view.jitter, view.jitter_p, view.interpolation) == ((0.4, 0.4, 0.4, 0.0), 1.0, "bicubic")


@pytest.mark.parametrize(
    ("settings", "grid", "words"),
    [
        ({"mask_ratio": 0.01}, (4, 4), r"mask_ratio: 0.01 of 4 x 4 patches.* set 0.0625 to 0.938"),
        ({"mask_ratio": 0.99}, (4, 4), r"mask_ratio: 0.99 of 4 x 4 patches"),
        ({}, (1, 1), r"backbone.name: at 224 pixels its grid is a single patch"),
        ({"tokenizer": "dalle"}, (4, 4), r"tokenizer_weights: dalle needs a file"),
        ({"tokenizer_weights": "x.pth"}, (4, 4), r"tokenizer_weights: read with method.tokenizer=dalle or teacher"),
        ({"tokenizer": "teacher", "tokenizer_weights": "nowhere.pth"}, (4, 4), r"nowhere.pth"),
    ],
)
def test_what_cannot_work_is_one_line(settings: dict[str, object], grid: tuple[int, int], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        Config(**settings).check(replace(SITUATION, grid=grid))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", list(REAL))
def test_trains_real_backbones(name: str) -> None:
    backbone = create_backbone(name, image_size=64, model_args=REAL[name], masked=True)
    every_weight_gets_a_gradient(BEiT(Config(codes=16, tokenizer_steps=1), backbone, 64), 64)
