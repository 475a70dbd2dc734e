"""UPerNet against transformers', and FTN's decoder against its formulas, both in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import SwinConfig, UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetHead

from ssl_vit.segmenters.fpt import FeaturePyramidTransformer
from ssl_vit.segmenters.upernet import UPerNetDecoder

CHANNELS, CLASSES, WIDTH = (6, 10, 14, 18), 5, 16


def maps(sides=(24, 12, 6, 3), channels=CHANNELS, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, width, side, side + 2, generator=rng, dtype=torch.float64)
        for width, side in zip(channels, sides, strict=True)
    ]


def shaken(module):
    """In float64, evaluating, every weight and statistic drawn anew."""
    rng = torch.Generator().manual_seed(1)
    module = module.double().eval()
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=rng, dtype=torch.float64)
                value.copy_(noise.abs() + 0.5 if "running_var" in name else 0.2 * noise)
    return module


def test_upernet_is_transformers():
    decoder = shaken(UPerNetDecoder(CHANNELS, CLASSES, WIDTH))
    config = UperNetConfig(backbone_config=SwinConfig(), hidden_size=WIDTH, num_labels=CLASSES)
    theirs = UperNetHead(config, CHANNELS).double().eval()
    names = {
        "pooled": "psp_modules", "bottleneck": "bottleneck", "laterals": "lateral_convs", "smoothed": "fpn_convs",
        "fused": "fpn_bottleneck", "classifier": "classifier",
    }  # fmt: skip
    state = {}
    for name, value in decoder.state_dict().items():
        first, rest = name.split(".", 1)
        rest = rest.replace("1.weight", "weight").replace("1.bias", "bias") if first == "classifier" else rest
        *place, number, last = rest.split(".") if first != "classifier" else (rest, None, None)
        inner = [] if number is None else [{"0": "conv", "1": "batch_norm"}[number], last]
        state[".".join([names[first], *place, *inner])] = value
    theirs.load_state_dict(state, strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(decoder(maps()), theirs(maps()), atol=1e-10, rtol=1e-10)


def derived(state, levels):
    """FTN's decoder by its formulas (arXiv 2106.04108), in matrices."""
    inner = [
        F.conv2d(x, state[f"fpn.inner_blocks.{i}.0.weight"], state[f"fpn.inner_blocks.{i}.0.bias"])
        for i, x in enumerate(levels)
    ]
    for i in range(len(levels) - 2, -1, -1):
        inner[i] = inner[i] + F.interpolate(inner[i + 1], inner[i].shape[-2:], mode="nearest")
    pyramid = [
        F.conv2d(x, state[f"fpn.layer_blocks.{i}.0.weight"], state[f"fpn.layer_blocks.{i}.0.bias"], padding=1)
        for i, x in enumerate(inner)
    ]
    total = 0
    for branch in range(len(levels)):
        level = len(levels) - 1 - branch
        x = pyramid[level]
        for stage in range(len(levels) - branch):
            prefix = f"branches.{branch}.{stage}."
            x = _block(x, {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)})
            if level - stage > 0:
                x = F.interpolate(x, pyramid[level - stage - 1].shape[-2:], mode="bilinear", align_corners=False)
        total = total + x
    return F.conv2d(total, state["classifier.1.weight"], state["classifier.1.bias"])


def _norm(x, w, b):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * w + b


def _block(map_, w):
    b, d, height, width = map_.shape
    x = map_.permute(0, 2, 3, 1)  # rows and columns stay where they are
    normed = _norm(x, w["norm1.weight"], w["norm1.bias"])
    padded = F.pad(normed.permute(0, 3, 1, 2), (0, width % 2, 0, height % 2))
    coarse = F.conv2d(padded, w["attn.reduce.sr.0.weight"], w["attn.reduce.sr.0.bias"], stride=2).permute(0, 2, 3, 1)
    coarse = _norm(coarse, w["attn.reduce.sr.1.weight"], w["attn.reduce.sr.1.bias"]).reshape(b, -1, d)
    q = normed.reshape(b, -1, d) @ w["attn.q.weight"].T + w["attn.q.bias"]
    kv = coarse @ w["attn.kv.weight"].T + w["attn.kv.bias"]
    out = torch.zeros_like(q)
    size = d // 4
    for head in range(4):
        own = slice(head * size, (head + 1) * size)
        weights = (q[..., own] @ kv[..., :d][..., own].mT / size**0.5).softmax(-1)
        out[..., own] = weights @ kv[..., d:][..., own]
    x = x.reshape(b, -1, d) + out @ w["attn.proj.weight"].T + w["attn.proj.bias"]
    hidden = _norm(x, w["norm2.weight"], w["norm2.bias"]) @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    x = x + hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    return x.reshape(b, height, width, d).permute(0, 3, 1, 2)


def test_ftns_decoder_is_its_formulas():
    decoder = shaken(FeaturePyramidTransformer(CHANNELS[1:], CLASSES, WIDTH))
    levels = maps((12, 6, 3), CHANNELS[1:])
    with torch.inference_mode():
        torch.testing.assert_close(decoder(levels), derived(decoder.state_dict(), levels), atol=1e-10, rtol=1e-10)


def test_ftns_decoder_keeps_rows_and_columns_apart():
    """Turning the maps on their sides turns the scores, which it would not if a branch were turned and others not."""
    decoder = shaken(FeaturePyramidTransformer(CHANNELS[1:], CLASSES, WIDTH))
    with torch.no_grad():
        for value in decoder.state_dict().values():
            if value.ndim == 4:
                value.copy_((value + value.mT) / 2)
    levels = maps((12, 6, 4), CHANNELS[1:])
    with torch.inference_mode():
        torch.testing.assert_close(decoder([x.mT for x in levels]), decoder(levels).mT, atol=1e-9, rtol=1e-9)


def test_ftns_decoder_has_the_official_shapes():
    """Of pgt_tiny under the authors' FPN of 512 channels, for ADE20K's 150 classes."""
    with torch.device("meta"):
        decoder = FeaturePyramidTransformer((128, 256, 512), 150)
    shapes = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    assert [len(branch) for branch in decoder.branches] == [3, 2, 1]
    assert shapes["branches.0.2.attn.kv.weight"] == (1024, 512)
    assert shapes["branches.0.2.attn.reduce.sr.0.weight"] == (512, 512, 2, 2)
    assert shapes["branches.2.0.mlp.fc1.weight"] == (2048, 512)
    assert shapes["classifier.1.weight"] == (150, 512, 1, 1)
    block = 4 * 512 * 512 + 4 * 512 + 512 * 512 * 4 + 512 + 3 * 1024 + 2 * 2048 * 512 + 2048 + 512
    neck = sum(512 * width + 512 + 512 * 512 * 9 + 512 for width in (128, 256, 512))
    assert sum(value.numel() for value in decoder.parameters()) == 6 * block + neck + 150 * 513
    assert isinstance(decoder.classifier[0], nn.Dropout2d)
