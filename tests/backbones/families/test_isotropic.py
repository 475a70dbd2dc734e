"""Plain ViTs: every variant's size, and one of each family, cut to a few blocks, at any image size and both ways."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from scipy import linalg, ndimage
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import nn

from ssl_vit.backbones.attention import (
    FourierMixing,
    LinformerAttention,
    NystromAttention,
    PerformerAttention,
    pseudo_inverse,
)
from ssl_vit.backbones.shapes import ShapesAlone
from tests.backbones.families.compiled import check_compiled
from tests.golden.verify import fill_official, image_input

OURS = ("t2t_vit", "augvit", "refiner", "rams_trans", "vision_xformer", "multi_stream", "autoformer", "glit")
for family in (*OURS, "pruned_vit", "scaling_vit"):
    importlib.import_module(f"ssl_vit.backbones.families.{family}")

MODELS: dict[str, dict[str, Any]] = {  # name -> arguments that make it quick
    "t2t_vit_7": {"depth": 2},
    "t2t_vit_t_14": {"depth": 2},
    "augvit_small_linear": {"depth": 2},
    "augvit_small_circulant2": {"depth": 2},
    "refiner_vit_s": {"depth": 4},
    "rams_trans_base_patch32_448": {"depth": 2, "img_size": 224},
    "vit_tiny_performer_patch16_224": {"depth": 2},
    "vit_tiny_linformer_patch16_224": {"depth": 2},
    "vit_tiny_nystrom_patch16_224": {"depth": 2},
    "vit_tiny_fnet_patch16_224": {"depth": 2},
    "vit_tiny_nystrom_hybrid_patch16_224": {"depth": 2},
    "multi_stream_vit_tiny_patch16_224": {"depth": 6},
    "autoformer_tiny": {"depth": 2},
    "glit_tiny_patch16_224": {"depth": 3},
}

DEIT = {"tiny": 5_717_416, "small": 22_050_664, "base": 86_567_656}  # 1000 classes
WIDTH = {"tiny": 192, "small": 384, "base": 768}
LINFORMER = {size: DEIT[size] + 12 * 2 * 64 * 197 for size in DEIT}
NYSTROM = {size: DEIT[size] + 12 * heads * 33 for size, heads in (("tiny", 3), ("small", 6), ("base", 12))}
FNET = {size: DEIT[size] - 12 * 4 * (dim * dim + dim) for size, dim in WIDTH.items()}
PLAIN = {"performer": DEIT, "linformer": LINFORMER, "nystrom": NYSTROM, "fnet": FNET}
STEM = {size: (27 + 1) * 32 + (9 * 32 + 1) * 64 + (16 * 64 + 1) * dim for size, dim in WIDTH.items()}
PATCHES = {size: (768 + 1) * dim for size, dim in WIDTH.items()}
VMOE = {  # a plain ViT with, in some blocks, a router and an MLP for each further expert
    f"vmoe_{size}_patch{patch}_{where}_e{experts}_224": (3 * patch**2 + 1 + 1 + (224 // patch) ** 2 + 1) * dim
    + depth * (12 * dim**2 + 13 * dim)
    + layers * (experts * dim + (experts - 1) * (8 * dim**2 + 5 * dim))
    + 2 * dim
    + 1000 * (dim + 1)
    for size, patch, where, experts, dim, depth, layers in (
        ("small", 32, "last2", 8, 512, 8, 2),
        ("small", 32, "every2", 32, 512, 8, 4),
        ("base", 32, "every2", 32, 768, 12, 6),
        ("base", 16, "every2", 8, 768, 12, 6),
        ("base", 16, "every2", 32, 768, 12, 6),
        ("large", 16, "every2", 32, 1024, 24, 12),
    )
}
SCALED = {  # the paper's count is of blocks, patches and positions; then pooling and the classifier
    name: alone + (1 + 3) * dim + 4 * (dim + 1) * dim + (2 * dim + 1) * mlp + 1000 * (dim + 1)
    for name, alone, dim, mlp in (
        ("vit_giant_patch14_map_224", 1_011_199_616, 1408, 6144),
        ("vit_gigantic_patch14_map_224", 1_842_772_352, 1664, 8192),
    )
}
PARAMETERS = {  # of the authors' code where there is one, as it is built there
    "t2t_vit_7": 4_310_222,
    "t2t_vit_10": 5_889_230,  # published 5.9 M
    "t2t_vit_12": 6_941_902,
    "t2t_vit_14": 21_545_550,
    "t2t_vit_19": 39_177_422,
    "t2t_vit_24": 64_105_934,
    "t2t_vit_t_14": 21_541_070,
    "t2t_vit_t_19": 39_172_942,
    "t2t_vit_t_24": 64_101_454,  # published 64.1 M
    "t2t_vit_14_wide": 25_156_302,
    "t2t_vit_14_resnext": 21_545_550,  # t2t_vit_14 with more heads
    "augvit_small": 22_050_664,
    "augvit_small_linear": 25_598_824,
    "augvit_small_linear2": 29_146_984,
    "augvit_small_circulant2": 22_142_824,
    "augvit_base_circulant2": 86_751_976,
    "refiner_vit_s": 25_408_656,
    "refiner_vit_m": 55_450_932,
    "refiner_vit_l": 81_150_192,
    "rams_trans_base_patch32_448": 87_723_464,
    "autoformer_tiny": 5_867_944,
    "autoformer_small": 22_891_432,
    "autoformer_base": 53_691_688,
    "glit_tiny_patch16_224": 7_264_456,
    "pruned_vit": DEIT["tiny"],  # before anything is pruned
    **SCALED,
    **VMOE,
    "dvt_t2t_vit_12": 22_461_516,
    "dvt_t2t_vit_14": 67_881_836,
    "dynamicvit_deit_256_patch16_224": 10_304_942,
    "dynamicvit_deit_small_patch16_224": 22_774_414,
    "dynamicvit_deit_base_patch16_224": 89_452_846,
    "dynamicvit_lvvit_small_patch16_224": 26_875_574,
    "dynamicvit_lvvit_medium_patch16_224": 57_115_030,
    "widenet_base_patch16_224": 29_100_008,
    "widenet_large_patch16_224": 39_891_944,
    "widenet_huge_patch14_224": 61_548_520,
    **{f"multi_stream_vit_{size}_patch16_224": count for size, count in DEIT.items()},
    **{f"vit_{size}_{kind}_patch16_224": counts[size] for kind, counts in PLAIN.items() for size in DEIT},
    **{
        f"vit_{size}_{kind}_hybrid_patch16_224": counts[size] - PATCHES[size] + STEM[size]
        for kind, counts in PLAIN.items()
        for size in DEIT
    },
}

models = pytest.mark.parametrize("name", MODELS)


def build(name: str, **options: Any) -> nn.Module:
    """In eval mode, with weights that leave no branch silent."""
    model = timm.create_model(name, **{**MODELS.get(name, {}), **options})
    wanted = {n: p.shape for n, p in model.state_dict().items() if p.is_floating_point()}
    model.load_state_dict(fill_official(wanted), strict=False)
    return model.eval()


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters(name, count):
    with torch.device("meta"), ShapesAlone():
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count


@models
@pytest.mark.parametrize("size", [(96, 96), (97, 131), (256, 160)])
def test_any_size(name, size):
    model = build(name)
    stride = model.feature_info[-1]["reduction"]
    with torch.inference_mode():
        tokens, (*_, last) = model.forward_intermediates(torch.randn(1, 3, *size))
    height, width = (math.ceil(side / stride) for side in size)
    assert last.shape == (1, model.num_features, height, width)
    assert tokens.shape == (1, height * width + model.num_prefix_tokens, model.num_features)
    assert tokens.isfinite().all()


@models
def test_runs_on_the_meta_device(name):
    with torch.device("meta"), ShapesAlone():
        model = timm.create_model(name, num_classes=0, **MODELS[name])
        assert model(torch.zeros(2, 3, 64, 96)).shape == (2, model.num_features)


@models
def test_padding_is_what_a_ragged_image_gets(name):
    model = build(name)
    stride = model.feature_info[-1]["reduction"]
    x = torch.randn(1, 3, 97, 131)
    padded = F.pad(x, (0, -131 % stride, 0, -97 % stride))
    with torch.inference_mode():
        assert torch.allclose(model(x), model(padded), atol=1e-5)


@models
def test_every_way_to_features_agrees(name):
    model = build(name)
    x = image_input((2, 3, 128, 128))[:, :, :96]
    with torch.inference_mode():
        logits, features = model(x), model.forward_features(x)
        final, levels = model.forward_intermediates(x)
        (last,) = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        (tokens,) = model.forward_intermediates(x, indices=1, output_fmt="NLC", intermediates_only=True)
        first = model.forward_intermediates(
            x, indices=[0], stop_early=True, return_prefix_tokens=True, intermediates_only=True
        )
        pooled = model.forward_head(features, pre_logits=True)
        model.reset_classifier(0)
        headless = model(x)
        pyramid = timm.create_model(name, features_only=True, out_indices=(0, 1), **MODELS[name])
        pyramid.model.load_state_dict(model.state_dict(), strict=False)
        pruned = pyramid.eval()(x)
    prefix = model.num_prefix_tokens
    assert torch.equal(final, features)
    assert len(levels) == len(model.feature_info)
    assert torch.equal(last, features[:, prefix:].transpose(1, 2).reshape(last.shape))
    assert torch.equal(tokens.transpose(1, 2).reshape(last.shape), levels[-1])
    assert torch.equal(first[0][0], levels[0])
    assert first[0][1].shape == (2, prefix, model.num_features)
    assert torch.equal(headless, pooled)
    averaged = model.global_pool == "avg"
    assert torch.allclose(pooled, features[:, prefix:].mean(1) if averaged else features[:, 0], rtol=1e-6, atol=0)
    assert logits.shape[1] in (200, 1000)
    assert all(torch.equal(a, b) for a, b in zip(pruned, levels[:2], strict=True))


@models
def test_gradient_reaches_every_parameter_and_checkpointing_keeps_it(name):
    model = build(name)
    x = image_input((2, 3, 96, 96))
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing)
        model(x).square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    plain, recomputed = gradients
    assert [n for n, grad in plain.items() if not grad.any()] == []
    assert all(torch.equal(plain[n], recomputed[n]) for n in plain)
    fixed = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n.rpartition(".")[2] for n in fixed} <= {"w", "pos_embed"}  # T2T's directions and sinusoids


@models
def test_bfloat16_is_close(name):
    model = build(name)
    x = image_input((2, 3, 96, 96))
    with torch.inference_mode():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).norm() < 0.1 * exact.norm()


@models
def test_drop_path_channels_and_classes(name):
    model = build(name, in_chans=1, num_classes=7, drop_path_rate=0.5)
    x = torch.randn(2, 1, 64, 64)
    assert model(x).shape == (2, 7)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    model.train()
    for module in model.modules():  # its own randomness apart, a model in training mode would be repeatable
        if isinstance(module, nn.Dropout | nn.modules.batchnorm._BatchNorm):
            module.eval()
    torch.manual_seed(0)
    assert len({model(x).sum().item() for _ in range(6)}) > 1


@models
def test_layer_decay_groups_hold_every_trained_parameter_once(name):
    model = timm.create_model(name, **MODELS[name])
    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.75)
    trained = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    scale = {trained[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(scale) == len(trained)
    assert scale["cls_token"] == min(scale.values()) < scale["blocks.0.norm1.weight"] < scale["blocks.1.norm1.weight"]
    assert scale["head.weight"] == 1.0
    undecayed = {trained[id(p)] for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    assert "cls_token" in undecayed
    assert "head.weight" not in undecayed


@pytest.mark.slow  # seconds each, and a break costs speed alone
@models
def test_compiles_without_graph_breaks(name):
    check_compiled(build(name), image_input((2, 3, 64, 64)))


def test_t2t_positions_are_fixed_sinusoids():
    model = timm.create_model("t2t_vit_7", depth=1)
    position, channel = 5, 6
    assert not model.pos_embed.requires_grad
    angle = position / 10000 ** (channel / 256)
    assert model.pos_embed[0, position, channel].item() == pytest.approx(math.sin(angle), abs=1e-6)
    assert model.pos_embed[0, position, channel + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_t2t_refuses_another_patch_size():
    with pytest.raises(ValueError, match="16 only"):
        timm.create_model("t2t_vit_7", patch_size=8)


def test_circulant_layer_is_the_matrix_of_the_official_checkpoints():
    augvit = importlib.import_module("ssl_vit.backbones.families.augvit")
    columns, bias, x = torch.randn(16 * 24), torch.randn(96), torch.randn(5, 96)
    official = {
        "blocks.0.augs_attn2.0.weight_list": columns,
        "blocks.0.augs_attn2.0.index_matrix": torch.zeros(96, 96),
        "blocks.0.augs_attn2.0.bias": bias,
    }
    ours = augvit.load_official(official)
    assert set(ours) == {"blocks.0.shortcuts1.1.weight", "blocks.0.shortcuts1.1.bias"}
    layer = augvit.BlockCirculant(96)
    layer.load_state_dict({name.rpartition(".")[2]: value for name, value in ours.items()})
    blocks = columns.numpy().reshape(4, 4, 24)
    matrix = np.block([[linalg.circulant(block) for block in row] for row in blocks])
    assert torch.allclose(layer(x), F.linear(x, torch.from_numpy(matrix), bias), atol=1e-5)


def test_augvit_without_shortcuts_is_the_plain_vit():
    ours = build("augvit_small", depth=2)
    plain = VisionTransformer(embed_dim=384, depth=2, num_heads=6).eval()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(ours(x), plain(x))


def test_one_stream_without_skip_is_the_plain_vit():
    ours = build("multi_stream_vit_tiny_patch16_224", depth=4, streams=1, skip=False)
    plain = VisionTransformer(embed_dim=192, depth=4, num_heads=3).eval()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(ours(x), plain(x))


def test_streams_are_summed_with_the_first_block():
    model = build("multi_stream_vit_tiny_patch16_224", depth=6)
    for block in model.blocks[1:-1]:  # identities
        for layer in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    with torch.inference_mode():
        first, *inner, last = model.forward_intermediates(
            torch.randn(1, 3, 64, 64), output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
        tokens = [torch.cat([prefix, patches], dim=1) for patches, prefix in (first, *inner, last)]
        assert len(inner) == 2
        assert all(torch.allclose(level, 2 * tokens[0]) for level in tokens[1:-1])
        assert torch.allclose(tokens[-1], model.blocks[-1](3 * tokens[0]), atol=1e-5)


def test_streams_must_be_equal():
    with pytest.raises(ValueError, match="depth 7"):
        timm.create_model("multi_stream_vit_tiny_patch16_224", depth=7)


def exact_attention(q, k, v):
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


def test_linformer_with_each_token_its_own_mixture_is_attention():
    layer = LinformerAttention(32, 2)
    q, k, v = torch.randn(3, 1, 2, 64, 16).unbind()
    layer.key_mix.data = layer.value_mix.data = torch.eye(64)
    assert torch.allclose(layer.mix(q, k, v), exact_attention(q, k, v), atol=1e-5)


def test_linformer_keeps_the_class_token_and_the_total_weight_at_another_size():
    layer = LinformerAttention(32, 2)
    layer.build_for(tokens=1 + 49, prefix=1)
    weights = torch.linspace(0, 1, 50).expand(64, 50)
    resized = layer.resized(weights, 1 + 196)
    assert resized.shape == (64, 197)
    assert torch.equal(resized[:, 0], weights[:, 0])
    assert torch.allclose(resized[:, 1:].sum(1), weights[:, 1:].sum(1), rtol=1e-4)


def test_linformer_is_built_for_the_models_tokens():
    model = timm.create_model("vit_tiny_linformer_patch16_224", depth=1, img_size=96, reg_tokens=2)
    assert model.blocks[0].attn.key_mix.shape == (64, 36 + 3)
    assert model.blocks[0].attn.prefix == 3


def test_nystrom_is_exact_when_every_token_is_a_landmark():
    layer = NystromAttention(32, 2)
    nn.init.zeros_(layer.conv.weight)
    q, k, v = torch.randn(3, 1, 2, 40, 16).unbind()
    q = k = 2 * q  # a well-conditioned kernel, whose inverse the iteration reaches
    assert torch.allclose(layer.mix(q, k, v), exact_attention(q, k, v), atol=1e-3)


def test_pseudo_inverse_is_numpys():
    x = (torch.randn(3, 8, 8) + 4 * torch.eye(8)).softmax(-1)
    expected = torch.from_numpy(np.linalg.pinv(x.numpy()))
    assert torch.allclose(pseudo_inverse(x, rounds=12), expected, atol=1e-3)


def test_performer_with_many_directions_is_attention():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 50, 16).unbind()
    q, k = q / 2, k / 2  # the variance of the estimate grows exponentially with their length
    layer = PerformerAttention(16, 1)
    layer.directions = torch.cat([PerformerAttention(16, 1).directions for _ in range(400)])
    exact = exact_attention(q, k, v)
    assert (layer.mix(q, k, v) - exact).norm() < 0.05 * exact.norm()


def test_fourier_mixing_is_numpys():
    x = torch.randn(2, 7, 12)
    expected = torch.from_numpy(np.fft.fft2(x.numpy()).real)
    assert torch.allclose(FourierMixing(12)(x), expected.float(), atol=1e-4)
    with pytest.raises(ValueError, match="attn_drop"):
        FourierMixing(12, attn_drop=0.1)


@pytest.mark.parametrize("patch", [1, 4, 8, 16])
def test_hybrid_stem_covers_every_pixel_once_a_token(patch):
    model = timm.create_model("vit_tiny_fnet_hybrid_patch16_224", depth=1, img_size=32, patch_size=patch)
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    tokens = model.patch_embed(x)
    assert tokens.shape == (1, 32 // patch, 32 // patch, 192)
    tokens.square().sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("kind", ["performer", "linformer", "nystrom"])
def test_any_plain_family_takes_a_kind_of_attention(kind):
    model = timm.create_model("t2t_vit_7", depth=1, attn_layer=kind)
    assert type(model.blocks[0].attn).__name__.lower() == f"{kind}attention"
    with pytest.raises(ValueError, match="no attention mask"):
        model(torch.randn(1, 3, 64, 64), is_causal=True)


def test_rams_boxes_are_scipys():
    rams = importlib.import_module("ssl_vit.backbones.families.rams_trans")
    torch.manual_seed(0)
    masks = torch.rand(40, 9, 14) > 0.6
    masks[0] = False
    boxes = rams.largest_box(masks)
    assert boxes[0].tolist() == [0, 0, 9, 14]
    for mask, box in zip(masks[1:], boxes[1:], strict=True):
        labels, count = ndimage.label(mask.numpy(), structure=np.ones((3, 3)))
        sizes = ndimage.sum_labels(mask.numpy(), labels, range(1, count + 1))
        rows, columns = ndimage.find_objects(labels)[int(sizes.argmax())]
        assert box.tolist() == [rows.start, columns.start, rows.stop, columns.stop]


def test_rams_zoom_is_a_crop_resized():
    rams = importlib.import_module("ssl_vit.backbones.families.rams_trans")
    images = torch.randn(2, 3, 64, 96)
    boxes = torch.tensor([[0, 31, 31, 63], [7, 0, 63, 95]])
    zoomed = rams.zoom(images, boxes)
    for image, zoom, (top, left, bottom, right) in zip(images, zoomed, boxes.tolist(), strict=True):
        crop = image[None, :, top : bottom + 1, left : right + 1]
        expected = F.interpolate(crop, size=(64, 96), mode="bilinear", align_corners=True)[0]
        assert torch.allclose(zoom, expected, atol=1e-4)


def test_rams_scores_are_attention_rolled_out():
    model = build("rams_trans_base_patch32_448")
    maps = []
    for block in model.blocks:
        block.attn.fused_attn = False  # so that timm's own attention maps can be caught
        block.attn.attn_drop.register_forward_hook(lambda *call: maps.append(call[2].mean(1).double()))
    with torch.inference_mode():
        model(torch.randn(2, 3, 96, 128))
        images = torch.randn(2, 3, 96, 128)
        maps.clear()
        model(images)
        caught = list(maps)
        scores = model.scores(images)
    rollout = torch.eye(2 + 12, dtype=torch.float64)
    for attention in caught:
        step = attention + torch.eye(2 + 12)
        rollout = step / step.sum(-1, keepdim=True) @ rollout
    assert torch.allclose(scores.double(), rollout[:, :, 2:].mean(1).reshape(2, 3, 4), atol=1e-5)


def test_rams_looks_twice():
    model = build("rams_trans_base_patch32_448")
    images = image_input((2, 3, 224, 224))
    whole, region = model.forward_scales(images)
    boxes = model.regions(images)
    assert torch.allclose(whole, model(images), atol=1e-5)
    assert ((boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= 223).all()).item()
    (whole.square().mean() + region.square().mean()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_autoformer_positions_are_vectors_of_distances():
    """Keys and values with a vector for every pair of tokens, as the authors compute it, on a map that isn't square."""
    family = importlib.import_module("ssl_vit.backbones.families.autoformer")
    layer = family.Attention(192, 3, qkv_bias=True, attn_drop=0.0, proj_drop=0.0).double()
    for table in (p for name, p in layer.named_parameters() if "_distances." in name):
        nn.init.normal_(table)
    height, width = 2, 17  # farther apart than the longest distance
    x = torch.randn(2, 1 + height * width, 192, dtype=torch.float64)
    rows, columns = torch.arange(height * width) // width, torch.arange(height * width) % width

    def pairs(table, places):
        index = torch.zeros(1 + height * width, 1 + height * width, dtype=torch.long)
        index[1:, 1:] = (places - places[:, None]).clamp(-14, 14) + 15
        return table[index]

    q, k, v = layer.qkv(x).reshape(2, -1, 3, 3, 64).permute(2, 0, 3, 1, 4)
    keys, values = (
        pairs(part.rows, rows) + pairs(part.columns, columns) for part in (layer.key_distances, layer.value_distances)
    )
    maps = ((torch.einsum("bhid,bhjd->bhij", q, k) + torch.einsum("bhid,ijd->bhij", q, keys)) / 8).softmax(-1)
    seen = torch.einsum("bhij,bhjd->bhid", maps, v) + torch.einsum("bhij,ijd->bhid", maps, values)
    expected = layer.proj(seen.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, (height, width)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "blocks"), [("autoformer_tiny", 13), ("glit_tiny_patch16_224", 12)])
def test_searched_networks_have_no_more_blocks_than_were_found(name, blocks):
    with pytest.raises(ValueError, match=f"depth is 14, but {blocks} blocks were found"):
        timm.create_model(name, depth=14)


def test_autoformer_knows_a_supernet_by_its_width():
    family = importlib.import_module("ssl_vit.backbones.families.autoformer")
    with pytest.raises(ValueError, match="a supernet 300 wide; the published ones are 256, 448, 640 wide"):
        family.load_official({"patch_embed_super.proj.weight": torch.zeros(300, 3, 16, 16)})


def test_glit_splits_channels_between_attention_and_convolution():
    """The convolution's part of what comes out depends on its part of what goes in alone."""
    family = importlib.import_module("ssl_vit.backbones.families.glit")
    layer = family.GlobalLocal(48, family.Found(1, ratio=4, inner=2, kernel=3), True, 0.0, 0.0).eval()
    x, other = torch.randn(2, 1, 9, 48)
    other[..., 16:] = x[..., 16:]
    assert torch.equal(layer(x)[..., 16:], layer(other)[..., 16:])
    assert not torch.allclose(layer(x)[..., :16], layer(other)[..., :16])
    other[:, 5:] += 1  # two tokens away from the fourth
    assert torch.equal(layer(x)[:, 3, 16:], layer(other)[:, 3, 16:])
    assert not torch.allclose(layer(x)[:, 4, 16:], layer(other)[:, 4, 16:])


def test_scaled_vit_pools_by_attention_without_a_class_token():
    small = {"embed_dim": 64, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    model = build("vit_giant_patch14_map_224", **small)
    x = image_input((2, 3, 84, 84))[:, :, :56]
    with torch.inference_mode():
        tokens = model.forward_features(x)
        pooled = model.forward_head(tokens, pre_logits=True)
        pool = model.attn_pool
        query, key, value = pool.q(pool.latent), *pool.kv(tokens).chunk(2, dim=-1)
        heads = [part.reshape(len(part), -1, 2, 32).transpose(1, 2) for part in (query, key, value)]
        seen = ((heads[0] @ heads[1].mT) / math.sqrt(32)).softmax(-1) @ heads[2]
        seen = pool.proj(seen.transpose(1, 2).flatten(2))
        expected = (seen + pool.mlp(pool.norm(seen)))[:, 0]
    assert tokens.shape == (2, 4 * 6, 64)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # seconds, and a break costs speed alone
@pytest.mark.parametrize("name", ["vit_giant_patch14_map_224", "vit_gigantic_patch14_map_224"])
def test_scaled_vit_compiles_as_one_graph(name):
    small = {"embed_dim": 64, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    check_compiled(build(name, **small), image_input((2, 3, 56, 56)))
