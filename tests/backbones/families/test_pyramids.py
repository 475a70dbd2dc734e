"""Pyramids and convolutional hybrids: every variant's size, and one of each family at any image size, both ways."""

from __future__ import annotations

import importlib
import math
import shutil

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from ssl_vit.backbones.shapes import ShapesAlone
from tests.backbones.families.compiled import check_compiled
from tests.golden.verify import fill_official, image_input

BUILDS = {  # variant -> the least depth that has every kind of block
    "pvt_tiny": {"depths": (1, 1, 1, 1)},
    "cmt_ti": {"depths": (1, 1, 1, 1)},
    "rest_lite": {"depths": (1, 1, 1, 1)},
    "p2t_tiny": {"depths": (1, 1, 1, 1)},
    "hat_net_tiny": {"depths": (1, 1, 1, 1)},
    "transcnn_tiny": {"depths": (1, 1, 1, 1)},
    "vit_c_1gf": {"depth": 3},
    "cotnet50": {"depths": (1, 1, 1, 1)},
    "cotnext50_2x48d": {"depths": (1, 1, 1, 1)},
    "se_cotnetd_50": {"depths": (1, 1, 2, 1)},
    "se_cotnetd_152": {"depths": (1, 1, 2, 1)},
    "cyclemlp_b1": {"depths": (1, 1, 1, 1)},
    "gfnet_ti": {"depths": (2,)},
    "gfnet_h_ti": {"depths": (1, 1, 1, 1)},
    "asmlp_tiny": {"depths": (1, 1, 1, 1)},
    "s2mlp_deep": {"depth": 2},
    "ccs_mlp_s16": {"depth": 2},
    "vip_s7": {"depths": (1, 1), "patch_size": 8},
}

PARAMETERS = {  # of the authors' code, with 1000 classes
    "pvt_tiny": 13_229_288,
    "pvt_small": 24_485_864,
    "pvt_medium": 44_208_104,
    "pvt_large": 61_369_320,
    "cmt_ti": 9_492_426,
    "cmt_xs": 15_247_208,
    "cmt_s": 26_256_160,
    "cmt_b": 45_715_076,
    "rest_lite": 10_508_300,
    "rest_small": 13_679_708,
    "rest_base": 30_327_052,
    "rest_large": 51_676_156,
    "p2t_tiny": 11_590_840,
    "p2t_small": 24_079_848,
    "p2t_base": 36_066_408,
    "p2t_medium": 40_861_480,
    "p2t_large": 54_477_096,
    "transcnn_tiny": 13_315_976,
    "transcnn_small": 26_538_824,
    "transcnn_medium": 48_322_504,
    "transcnn_large": 80_033_352,
    "hat_net_tiny": 12_655_912,
    "hat_net_small": 25_747_784,
    "hat_net_medium": 42_942_472,
    "hat_net_large": 63_132_488,
    "vit_p_1gf": 4_830_376,
    "vit_p_4gf": 18_507_112,
    "vit_p_18gf": 86_567_656,
    "vit_p_36gf": 178_364_392,
    "vit_c_1gf": 4_567_936,
    "vit_c_4gf": 17_754_136,
    "vit_c_18gf": 81_573_160,
    "vit_c_36gf": 167_796_008,
    "cotnet50": 22_222_416,
    "cotnet101": 38_272_048,
    "cotnext50_2x48d": 30_046_276,
    "cotnext101_2x48d": 53_346_068,
    "se_cotnetd_50": 23_107_784,
    "se_cotnetd_101": 40_912_392,
    "se_cotnetd_152": 55_783_688,
    "cyclemlp_b1": 15_155_400,
    "cyclemlp_b2": 26_802_504,
    "cyclemlp_b3": 38_385_720,
    "cyclemlp_b4": 51_796_552,
    "cyclemlp_b5": 75_747_280,
    "gfnet_ti": 7_511_784,
    "gfnet_xs": 15_985_768,
    "gfnet_s": 24_869_608,
    "gfnet_b": 43_120_616,
    "gfnet_h_ti": 15_085_096,
    "gfnet_h_s": 32_162_632,
    "gfnet_h_b": 53_744_200,
    "asmlp_tiny": 28_282_696,
    "asmlp_small": 49_594_696,
    "asmlp_base": 87_752_808,
    "s2mlp_wide": 72_239_848,
    "s2mlp_deep": 53_916_520,
    "ccs_mlp_s16": 393_728 + 8 * (2_099_712 + 2_048 + 8 * 196) + 1_024 + 513_000,  # by hand: no code is public
    "ccs_mlp_b16": 590_592 + 12 * (4_722_432 + 3_072 + 8 * 196) + 1_536 + 769_000,
    "vip_s7": 25_114_984,
    "vip_s14": 29_892_904,
    "vip_m7": 55_272_488,
    "vip_l7": 87_784_936,
}

NO_GRADIENT = ("attn.k.bias", "transform_conv.bias")  # shift a whole row of logits, which softmax ignores

MIXERS = ("cyclemlp", "gfnet", "as_mlp", "s2_mlp", "vip", "ccs_mlp")
for family in ("pvt", "cmt", "rest", "p2t", "hat_net", "vit_early_conv", "cotnet", *MIXERS):
    importlib.import_module(f"ssl_vit.backbones.families.{family}")

ALIKE = {"cotnext50_2x48d", "se_cotnetd_152"}  # the code paths of others
families = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in BUILDS]
)


def build(name: str, **options) -> torch.nn.Module:
    """Shallow, in eval mode, with weights that leave no branch silent (some families start with zeroed ones)."""
    model = timm.create_model(name, **{**BUILDS[name], **options})
    wanted = {n: p.shape for n, p in model.state_dict().items() if p.is_floating_point()}
    model.load_state_dict(fill_official(wanted), strict=False)
    return model.eval()


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters(name, count):
    with torch.device("meta"), ShapesAlone():
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count


@families
@pytest.mark.parametrize("size", [(64, 64), (97, 131), (224, 160), pytest.param((800, 1333), marks=pytest.mark.slow)])
def test_any_size(name, size):
    model = build(name, features_only=True)
    with torch.inference_mode():
        maps = model(torch.randn(1, 3, *size))
    for x, chs, stride in zip(maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True):
        assert x.shape == (1, chs, *(math.ceil(side / stride) for side in size))
        assert x.isfinite().all()


@families
def test_every_way_to_features_agrees(name):
    model = build(name)
    x = image_input((2, 3, 128, 128))[:, :, :96]
    levels = list(range(min(2, len(model.feature_info))))
    with torch.inference_mode():
        logits, features = model(x), model.forward_features(x)
        final, maps = model.forward_intermediates(x)
        first_two = model.forward_intermediates(x, indices=levels, stop_early=True, intermediates_only=True)
        (last,) = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        pyramid = timm.create_model(name, features_only=True, **BUILDS[name])
        pyramid.model.load_state_dict(model.state_dict(), strict=False)
        pooled = model.forward_head(features, pre_logits=True)
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
    assert pooled.shape == (2, model.head_hidden_size)
    assert logits.shape == (2, 1000)
    assert torch.equal(final, features)
    ours = maps[-len(model.feature_info) :]
    assert [m.shape[1] for m in ours] == [info["num_chs"] for info in model.feature_info]
    assert [128 // m.shape[3] for m in ours] == [info["reduction"] for info in model.feature_info]
    assert all(torch.equal(a, b) for a, b in zip(first_two, maps, strict=False))
    tokens = features[:, 1:].transpose(1, 2).reshape(last.shape) if features.ndim == 3 else features
    assert torch.equal(last, tokens)
    with torch.inference_mode():
        got = pyramid.eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(got, maps[-len(got) :], strict=True))


@families
def test_gradient_reaches_every_parameter_and_checkpointing_keeps_it(name):
    model = build(name)
    x = image_input((2, 3, 96, 96))
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing)
        model(x).square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    learning = [n for n, p in model.named_parameters() if p.requires_grad]
    silent = [n for n in learning if n not in plain or not plain[n].any()]
    assert [n for n in silent if not n.endswith(NO_GRADIENT)] == []
    assert all(torch.equal(plain[n], recomputed[n]) for n in plain)


@families
def test_bfloat16_is_close(name):
    torch.manual_seed(0)
    model = timm.create_model(name, **BUILDS[name]).eval()
    x = image_input((2, 3, 96, 96))
    with torch.inference_mode():
        exact = model.forward_features(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.forward_features(x)
            assert model(x).dtype == torch.bfloat16
    assert torch.cosine_similarity(rough.float().flatten(1), exact.flatten(1)).min() > 0.99


@families
def test_drop_path_and_channels(name):
    model = build(name, in_chans=1, num_classes=7, drop_path_rate=0.5)
    x = torch.randn(2, 1, 64, 64)
    assert model(x).shape == (2, 7)
    torch.manual_seed(0)
    model.train()
    for module in model.modules():  # its own randomness apart, a model in training mode would be repeatable
        if isinstance(module, torch.nn.Dropout | torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    assert not torch.allclose(model(x), model(x))


@families
def test_layer_decay_groups_hold_every_parameter_once(name):
    model = build(name)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.75)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    depth = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    parameters = list(model.named_parameters())
    stem = next(p for n, p in parameters if n.startswith(("stem", "patch_embed", "conv1")))
    assert depth[id(stem)] == min(depth.values())
    assert depth[id(parameters[-1][1])] == 1.0


@pytest.mark.slow  # seconds each, and a break costs speed alone
@pytest.mark.parametrize("name", sorted(set(BUILDS) - {"hat_net_tiny", "cotnet50", "se_cotnetd_50"}))  # same code paths
def test_compiles_without_graph_breaks(name):
    check_compiled(build(name), image_input((2, 3, 64, 64)))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", ["pvt_tiny", "vit_c_1gf"])
def test_compiles_to_machine_code(name):
    check_compiled(build(name), image_input((2, 3, 64, 64)), backend="inductor")
