"""MAE against its objective (2111.06377, sections 3 and 4.1) written again in numpy, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ssl_vit.backbones import create_backbone
from ssl_vit.config import load_config
from ssl_vit.errors import UserError
from ssl_vit.methods.beit import BEiT
from ssl_vit.methods.mae import MAE, cut
from ssl_vit.methods.mae_config import Config
from ssl_vit.methods.masked import sine_positions
from ssl_vit.run.facts import Facts
from ssl_vit.run.plan import resolve_config
from tests.methods.masked import Plain, array, cells, every_weight_gets_a_gradient, linear_numpy, three_steps_equal
from tests.methods.siamese import SITUATION
from tests.methods.small import seen_by, softmax

DIM, HEADS = 8, 2


def make() -> MAE:
    torch.manual_seed(0)
    config = Config(decoder_dim=DIM, decoder_depth=1, decoder_heads=HEADS, mask_ratio=0.7)
    return MAE(config, Plain(), 8).double()


def norm(layer: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    return x * array(layer.weight) + array(layer.bias)


def block(layer: nn.Module, x: np.ndarray) -> np.ndarray:
    """A pre-norm transformer block on tokens [T, D]."""
    tokens = len(x)
    q, k, v = (
        linear_numpy(layer.attn.qkv, norm(layer.norm1, x)).reshape(tokens, 3, HEADS, DIM // HEADS).transpose(1, 2, 0, 3)
    )
    weights = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(DIM // HEADS))
    x = x + linear_numpy(layer.attn.proj, (weights @ v).transpose(1, 0, 2).reshape(tokens, DIM))
    gelu = np.vectorize(lambda value: 0.5 * value * (1 + math.erf(value / math.sqrt(2))))
    return x + linear_numpy(layer.mlp.fc2, gelu(linear_numpy(layer.mlp.fc1, norm(layer.norm2, x))))


def reference(method: MAE, batch: torch.Tensor, seed: int) -> float:
    """Mean squared error over hidden patches, each target patch less its mean over its deviation."""
    torch.manual_seed(seed)
    order = torch.rand(len(batch), 16).argsort(1).numpy()
    positions, errors = array(method.positions), []
    _, patches = seen_by(method.backbone, batch)
    for image in range(len(batch)):
        kept, hidden = order[image, :4], order[image, 4:]  # a third of 16 rounded down is seen
        seen = patches[image][kept]
        prefix = linear_numpy(method.embed, seen.mean(0, keepdims=True))
        known = linear_numpy(method.embed, seen) + positions[kept]
        masks = array(method.mask_token)[None] + positions[hidden]
        tokens = block(method.decoder[0], np.concatenate([prefix, known, masks]))
        drawn = linear_numpy(method.predict, norm(method.decoder[1], tokens)[-len(hidden) :])
        wanted = cells(batch)[image][hidden].transpose(0, 2, 1).reshape(len(hidden), 12)  # pixels, then colours
        wanted = (wanted - wanted.mean(1, keepdims=True)) / np.sqrt(wanted.var(1, ddof=1, keepdims=True) + 1e-6)
        errors.append((drawn - wanted) ** 2)
    return float(np.mean(errors))


def test_three_steps_equal_the_formula() -> None:
    method = make()
    watched = {
        "embed.weight": (3, 2),
        "mask_token": (4,),
        "decoder.0.attn.qkv.weight": (9, 3),
        "decoder.0.mlp.fc1.bias": (6,),
        "predict.weight": (7, 1),
        "backbone.linear.weight": (1, 4),
    }
    three_steps_equal(method, lambda batch, seed: reference(method, batch, seed), watched)


def test_hidden_patches_are_never_seen() -> None:
    method = make()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    kept = torch.tensor([[0, 5], [3, 9]])
    method.backbone.visible(x, kept).patches.sum().backward()
    felt = np.abs(cells(x.grad)).sum((2, 3)) > 0
    assert [np.flatnonzero(row).tolist() for row in felt] == [[0, 5], [3, 9]]


def test_a_real_transformer_leaves_patches_out_and_sees_the_rest_as_before() -> None:
    args = {"img_size": 64, "depth": 2, "patch_size": 8, "embed_dim": 24}
    backbone = create_backbone("vit_tiny_patch16_224", model_args=args).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    order = torch.randperm(64).expand(2, -1)
    all_seen, whole = backbone.visible(x, order), backbone(x)
    torch.testing.assert_close(all_seen.patches, whole.patches.flatten(2).mT[:, order[0]], rtol=0, atol=1e-12)
    torch.testing.assert_close(all_seen.pooled, whole.pooled, rtol=0, atol=1e-12)
    changed = x.clone()
    changed[:, :, :8, :8] = 0  # patch 0
    without = torch.arange(1, 64).expand(2, -1)
    torch.testing.assert_close(backbone.visible(changed, without), backbone.visible(x, without), rtol=0, atol=0)


def test_patches_are_cut_in_the_order_of_the_released_weights() -> None:
    """Row, column, then (within a patch) row, column, colour: einsum nchpwq->nhwpqc of the authors' code."""
    x = torch.randn(2, 3, 6, 8)
    expected = x.reshape(2, 3, 3, 2, 4, 2).permute(0, 2, 4, 3, 5, 1).reshape(2, 12, 12)
    assert torch.equal(cut(x, 2), expected)


def test_positions_are_sines_and_cosines_of_column_and_row() -> None:
    found = sine_positions(2, 3, 8)
    row, column, waves = 1, 2, [1.0, 0.01]
    expected = [f(place * wave) for place in (column, row) for f in (math.sin, math.cos) for wave in waves]
    assert found[row * 3 + column].tolist() == pytest.approx(expected)


def test_the_encoder_has_such_positions_too_and_keeps_them() -> None:
    args = {"img_size": 32, "depth": 1, "patch_size": 8, "embed_dim": 24}
    backbone = create_backbone("vit_tiny_patch16_224", model_args=args)
    MAE.begin(backbone)
    table = backbone.model.pos_embed
    torch.testing.assert_close(table[0, 1:], sine_positions(4, 4, 24))
    assert table[0, 0].tolist() == [0.0] * 24
    assert not table.requires_grad
    BEiT.begin(backbone)
    assert table.requires_grad, "BEiT goes on to learn them"


def test_other_networks_are_refused_with_the_reason_before_data_is_read() -> None:
    def colours():
        raise AssertionError("images were read")

    facts = Facts(images=1000, side=64, colours=colours, gpus=0, cpus=1, bfloat16=False)
    flags = {"data.path": "x", "method.name": "mae", "backbone.name": "swin_tiny_patch4_window7_224"}
    with pytest.raises(
        UserError, match=r"^method.name: mae can't pretrain swin_tiny_patch4_window7_224: it is no plain"
    ):
        resolve_config(load_config(flags=flags), facts)


def test_a_decoder_whose_heads_do_not_share_its_width_is_refused() -> None:
    with pytest.raises(UserError, match=r"decoder_dim: 500 is not a multiple of 4 and of the 16"):
        Config(decoder_dim=500, decoder_heads=16).check(SITUATION)


def test_the_recipe_is_the_official_one() -> None:
    chosen = {key: value for key, (value, _) in Config().choose(replace(SITUATION, batch_size=4096)).items()}
    assert chosen["optim.lr"] == pytest.approx(2.4e-3)
    assert (chosen["optim.beta2"], chosen["optim.weight_decay"], chosen["optim.clip"]) == (0.95, 0.05, 0.0)
    shape = [chosen[f"method.decoder_{key}"] for key in ("dim", "depth", "heads")]
    assert shape == [512, 8, 16]
    (view,) = Config().views(224).views
    assert (view.scale, view.jitter_p) == ((0.2, 1.0), 0.0)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_trains_real_backbones(name: str) -> None:
    backbone = create_backbone(
        name, model_args={"img_size": 64, "depth": 1, "patch_size": 8, "embed_dim": 24, "num_heads": 2}
    )
    method = MAE(Config(decoder_dim=16, decoder_depth=1, decoder_heads=2), backbone, 64)
    every_weight_gets_a_gradient(method, 64)
