"""The window families: exact sizes, any image size, timm's conventions. Their outputs: tests/golden/test_goldens.py."""

from __future__ import annotations

import copy
import importlib
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from ssl_vit.backbones.families import focal, lg_transformer, linmapper, pgt, regionvit, shuffle
from ssl_vit.backbones.layers import attend
from ssl_vit.backbones.shapes import ShapesAlone
from ssl_vit.backbones.windows import RelativePositionBias
from tests.backbones.families.compiled import check_compiled

# the smallest variant of each family's module, made shallow: depth would add nothing but time
SMALL: dict[str, tuple[str, dict[str, object]]] = {
    "cswin": ("cswin_tiny_224", {"depths": (1, 1, 1, 1), "embed_dim": 32}),
    "shuffle": ("shuffle_vit_tiny_patch4_window7_224", {"depths": (2, 2, 2, 2), "heads": (1, 2, 2, 3)}),
    "cat": ("cat_tiny", {"depths": (1, 1, 1, 1), "embed_dim": 32}),
    "regionvit": ("regionvit_small_w14_peg_224", {"depths": (1, 1, 1, 1), "embed_dim": 24, "window": 7}),
    "focal": ("focal_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "heads": (1, 2, 2, 2), "embed_dim": 24}),
    "focal fast": (
        "focalv2_tiny_useconv_patch4_window7_224",
        {"depths": (1, 1, 1, 1), "heads": (1, 2, 2, 2), "embed_dim": 24},
    ),
    "linmapper": ("linmapper_tiny", {"depths": (1, 1, 2, 1), "heads": (1, 2, 2, 2), "embed_dim": 16}),
    "linmapper mlp": ("linmapper_tiny_mlp", {"depths": (1, 1, 2, 1), "heads": (1, 2, 2, 2), "embed_dim": 16}),
    "linmapper depthwise": (
        "linmapper_tiny_depthwise",
        {"depths": (1, 1, 2, 1), "heads": (1, 2, 2, 2), "embed_dim": 16},
    ),
    "lg_transformer": ("lg_transformer_tiny", {"depths": (1, 2, 1, 1), "heads": (1, 2, 2, 2), "embed_dim": 16}),
    "pgt": ("pgt_tiny", {"depths": (1, 1, 1, 1), "heads": (1, 2, 2, 2), "embed_dim": 16}),
}
# exact parameters of the official code with 1000 classes
PARAMETERS = {
    "cswin_tiny_224": 22_320_552,
    "cswin_small_224": 34_643_304,
    "cswin_base_224": 77_382_184,
    "cswin_large_224": 173_262_664,
    "cswin_base_384": 77_382_184,
    "cswin_large_384": 173_262_664,
    "shuffle_vit_tiny_patch4_window7_224": 28_532_482,
    "shuffle_vit_small_patch4_window7_224": 50_076_178,
    "shuffle_vit_base_patch4_window7_224": 88_398_560,
    "cat_tiny": 16_870_996,
    "cat_small": 37_294_258,
    "cat_base": 51_531_922,
    "regionvit_tiny_224": 13_842_676,
    "regionvit_small_224": 30_586_618,
    "regionvit_medium_224": 41_215_906,
    "regionvit_base_224": 72_747_232,
    "regionvit_small_w14_224": 31_354_714,
    "regionvit_small_w14_peg_224": 31_367_674,
    "regionvit_base_w14_224": 73_825_120,
    "regionvit_base_w14_peg_224": 73_842_400,
    "focal_tiny_patch4_window7_224": 28_880_380,
    "focal_tiny_useconv_patch4_window7_224": 30_825_244,
    "focalv2_tiny_useconv_patch4_window7_224": 30_220_564,
    "focal_small_patch4_window7_224": 51_141_940,
    "focal_small_useconv_patch4_window7_224": 53_086_804,
    "focalv2_small_useconv_patch4_window7_224": 51_526_540,
    "focal_base_patch4_window7_224": 89_815_400,
    "focal_base_useconv_patch4_window7_224": 93_268_712,
    "focalv2_base_useconv_patch4_window7_224": 91_186_824,
    # without official code: the paper's 32.6 M and 61.0 M
    "lg_transformer_tiny": 32_638_306,
    "lg_transformer_small": 61_034_098,
    "pgt_tiny": 12_264_384 + 513 * 1000,  # about 12.3 M without a head
}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    for family in SMALL:
        importlib.import_module(f"ssl_vit.backbones.families.{family.split()[0]}")


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return SMALL[request.param]


@pytest.fixture
def model(small: tuple[str, dict[str, object]]) -> nn.Module:
    name, options = small
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=5, **options).eval()
    with torch.no_grad():  # fresh weights are so small, and biases and positions zero, that mistakes would not show
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / (2 * max(4, parameter[0].numel()) ** 0.5))
    return model


def images(*size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PARAMETERS)
def test_exact_parameters(name: str) -> None:
    with torch.device("meta"), ShapesAlone():
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("size", [(96, 96), (97, 131), (224, 224)])
def test_any_size(model: nn.Module, size: tuple[int, int]) -> None:
    """Maps cover the whole image, and no image sees another one (a wrong reshape of ragged windows mixes them)."""
    x = images(*size)
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        alone = model.forward_head(model.forward_features(x[1:]), pre_logits=True)
    for level, info in zip(maps, model.feature_info, strict=True):
        sides = [side / info["reduction"] for side in size]
        assert level.shape[:2] == (2, info["num_chs"])
        assert all(math.floor(side) <= got <= math.ceil(side) for side, got in zip(sides, level.shape[2:], strict=True))
    assert pooled.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(pooled[1:], alone, rtol=1e-4, atol=1e-5)
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3


@pytest.mark.slow
def test_detection_size(model: nn.Module) -> None:
    with torch.no_grad():
        maps = model.forward_intermediates(images(800, 1333, count=1), intermediates_only=True)
    assert [math.ceil(level.shape[2] / 25) for level in maps] == [8, 4, 2, 1]
    assert all(level.isfinite().all() for level in maps)


def test_every_pixel_reaches_every_stage(model: nn.Module) -> None:
    """No row or column of a ragged image is dropped, and none of its cells is made of padding alone."""
    x = images(97, 131, count=1).requires_grad_()
    for level in model.forward_intermediates(x, intermediates_only=True):
        (gradient,) = torch.autograd.grad(level.square().mean(), x, retain_graph=True)
        assert gradient.abs().sum(dim=(0, 1, 3)).all()
        assert gradient.abs().sum(dim=(0, 1, 2)).all()


def test_intermediates_agree(model: nn.Module, small: tuple[str, dict[str, object]]) -> None:
    x = images(97, 131)
    with torch.no_grad():
        features = model.forward_features(x)
        last, maps = model.forward_intermediates(x, norm=True)
        early = model.forward_intermediates(x, indices=[0, 2], stop_early=True, intermediates_only=True)
        logits = model(x)
        wrapped = timm.create_model(small[0], features_only=True, out_indices=(0, 2), **small[1]).eval()
        kept = {key: value for key, value in model.state_dict().items() if f"model.{key}" in wrapped.state_dict()}
        wrapped.load_state_dict({f"model.{key}": value for key, value in kept.items()})
        apart = wrapped(x)
    torch.testing.assert_close(last, features)
    torch.testing.assert_close(model.forward_head(last), logits)
    for i, got, other in zip((0, 2), early, apart, strict=True):
        torch.testing.assert_close(got, maps[i])
        torch.testing.assert_close(other, maps[i])
    assert wrapped.feature_info.channels() == [level.shape[1] for level in apart]


def test_gradients_and_checkpointing(model: nn.Module) -> None:
    """Every parameter learns, and recomputing the blocks changes neither the output nor a gradient."""
    plain, frugal = model.train(), copy.deepcopy(model).train()
    frugal.set_grad_checkpointing()
    x = images(96, 96)
    results = []
    for network in (plain, frugal):
        torch.manual_seed(0)
        features, maps = network.forward_intermediates(x)
        logits = network.forward_head(features)
        (logits.square().sum() + maps[-1].square().mean()).backward()
        results.append((logits, {name: p.grad for name, p in network.named_parameters()}))
    (logits, grads), (again, regrads) = results
    assert not [name for name, grad in grads.items() if grad is None or not grad.any()]
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(regrads, grads)


def test_bfloat16(model: nn.Module) -> None:
    x = images(96, 96)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)
    assert (rough.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.slow
def test_compiles_without_breaks(model: nn.Module) -> None:
    check_compiled(model, images(97, 131, count=1))


def test_groups_and_decay(model: nn.Module) -> None:
    """Each parameter has a depth; the head is the deepest and the stem the shallowest; positions don't decay."""
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    names = {name for name, _ in model.named_parameters()}
    assert set(groups) == names
    assert groups["head.fc.weight"] == max(groups.values())
    assert {name for name, depth in groups.items() if depth == 0} >= {n for n in names if n.startswith("stem.")}
    positions = ("bias_table", "pos_embed")
    assert model.no_weight_decay() == {name for name in names if any(part in name for part in positions)}


def test_classifier(model: nn.Module) -> None:
    assert model.get_classifier().out_features == 5
    model.reset_classifier(7)
    assert model(images(96, 96)).shape == (2, 7)
    model.reset_classifier(0)
    x = images(96, 96)
    torch.testing.assert_close(model(x), model.forward_head(model.forward_features(x), pre_logits=True))


def test_own_names_load_too(model: nn.Module) -> None:
    """A checkpoint in our names passes through the map from official names unchanged."""
    family = importlib.import_module(type(model).__module__)
    assert family.load_official(model.state_dict()).keys() == model.state_dict().keys()


def test_shuffle_fused_attention_is_the_official_one() -> None:
    """The goldens hold the unfused order of operations; the fused kernel must give the same."""
    torch.manual_seed(0)
    block = shuffle.WindowAttention(64, 2, spread=True)
    x = torch.randn(2, 64, 14, 21)
    block.fused_attn = True
    fused = block(x)
    block.fused_attn = False
    torch.testing.assert_close(fused, block(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shifted", [False, True])
def test_lg_path_is_swins_attention(shifted: bool) -> None:
    """Windows that reach beyond the map give what timm's Swin gives with a cyclic shift and masks."""
    torch.manual_seed(0)
    swin = SwinTransformerBlock(32, (14, 21), num_heads=2, window_size=7, shift_size=3 if shifted else 0).eval()
    path = lg_transformer.PathAttention(32, 2, bias=True)
    position = RelativePositionBias((7, 7), 2)
    path.qkv, path.proj = swin.attn.qkv, swin.attn.proj
    position.relative_position_bias_table = swin.attn.relative_position_bias_table
    x = torch.randn(2, 14, 21, 32)
    torch.testing.assert_close(path(x, position, shifted), swin._attn(x), rtol=1e-5, atol=1e-5)


def test_pgt_groups_attend_by_themselves() -> None:
    """Each group alone through torch's MultiheadAttention gives its part of the map."""
    torch.manual_seed(0)
    ours = pgt.GroupAttention(32, heads=2, groups=2)
    theirs = nn.MultiheadAttention(32, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat((ours.q.weight, ours.kv.weight)))
        theirs.in_proj_bias.copy_(torch.cat((ours.q.bias, ours.kv.bias)))
    theirs.out_proj = ours.proj
    x = torch.randn(1, 6, 8, 32)
    out = ours(x)
    for rows in (slice(0, 3), slice(3, 6)):
        for columns in (slice(0, 4), slice(4, 8)):
            group = x[:, rows, columns].reshape(1, 12, 32)
            expected = theirs(group, group, group)[0].reshape(1, 3, 4, 32)
            torch.testing.assert_close(out[:, rows, columns], expected, rtol=1e-5, atol=1e-5)


def test_linmapper_moves_places_of_shifted_windows() -> None:
    """A matrix that mirrors the 49 places of a window mirrors each window of the map, which start at 3, 10, …"""
    block = linmapper.WindowMixer(4, 2, "linear", shifted=True)
    with torch.no_grad():
        for layer in (block.value, block.proj):
            layer.weight.copy_(torch.eye(4))
            layer.bias.zero_()
        block.mixer.weight.copy_(torch.eye(49).flip(0))
    x = torch.randn(1, 17, 17, 4)
    out = block(x)
    torch.testing.assert_close(out[:, 3:10, 10:17], x[:, 3:10, 10:17].flip(1, 2))
    torch.testing.assert_close(out[:, :3, :3], torch.zeros(1, 3, 3, 4))  # the mirror image lies beyond the map


def test_linmapper_depthwise_equals_a_convolution_inside_a_window() -> None:
    torch.manual_seed(0)
    mixer = linmapper.DepthwiseMixer(3, 1)
    windows = torch.randn(2, 49, 3)
    place = 3 * 7 + 3  # the centre sees its whole window
    expected = (windows * mixer.conv.weight.flatten(1).T).sum(1) + mixer.conv.bias
    torch.testing.assert_close(mixer(windows)[:, place], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize(("kind", "own"), [("", 49 * 50), ("_mlp", 2 * 49 * 50), ("_depthwise", 32 * 50)])
def test_linmapper_has_swins_parameters_but_for_attention(size: str, kind: str, own: int) -> None:
    """Query, key and positions go; each head of 32 channels gets `own` parameters."""
    with torch.device("meta"), ShapesAlone():
        ours, swin = timm.create_model(f"linmapper_{size}{kind}"), timm.create_model(f"swin_{size}_patch4_window7_224")
    theirs = {name: p.numel() for name, p in swin.named_parameters()}
    qkv = sum(count for name, count in theirs.items() if ".qkv." in name)
    tables = sum(count for name, count in theirs.items() if name.endswith("bias_table"))
    heads = tables // 13**2
    assert sum(p.numel() for p in ours.parameters()) == sum(theirs.values()) - 2 * qkv // 3 - tables + heads * own


def test_linmapper_refuses_unknown_mixers() -> None:
    with pytest.raises(ValueError, match="'linear', 'mlp' or 'depthwise'"):
        timm.create_model("linmapper_tiny", mixer="attention")


def test_regionvit_hides_padding() -> None:
    """Two regions of 2 x 2, side by side, over a map of 2 x 3: the right column of the second is padding."""
    stage = regionvit.RegionStage(nn.Identity(), [], window=2, peg=None)
    hidden = stage.hidden(regionvit.Regions(torch.zeros(1, 8, 1, 2), torch.zeros(1, 8, 2, 3)))
    assert hidden is not None
    assert not hidden[0].any()
    real = torch.tensor([True, True, False, True, False])  # the regional token, then two rows of two
    assert torch.equal(hidden[1, 0] == 0, real[:, None] & real)


@pytest.mark.parametrize("size", [(20, 30), (4, 150), (130, 66)])
def test_focal_nearest_tokens_are_real_and_near(size: tuple[int, int]) -> None:
    """The distances of the tokens chosen for each window are the smallest of all the map's, by brute force."""
    near, offset, far, _ = focal.nearest(size)
    high, wide = (math.ceil(side / 7) for side in size)
    rows, columns = near // (7 * wide), near % (7 * wide)
    assert (rows < size[0]).all()
    assert (columns < size[1]).all()
    centre_rows = 7 * (torch.arange(high * wide) // wide) + 3
    centre_columns = 7 * (torch.arange(high * wide) % wide) + 3
    every = (centre_rows[:, None] - torch.arange(size[0])).square()[:, :, None]
    every = every + (centre_columns[:, None] - torch.arange(size[1])).square()[:, None]
    found = (centre_rows[:, None] - rows).square() + (centre_columns[:, None] - columns).square()
    assert torch.equal(found.sort(dim=1).values, every.flatten(1).sort(dim=1).values[:, :128])
    assert torch.equal(offset, torch.stack((centre_rows[:, None] - rows, centre_columns[:, None] - columns), dim=-1))
    assert len({*map(tuple, far[:, :1].tolist())}) == high * wide  # each window is nearest to itself


def test_a_bias_that_learns_is_attended_with_as_torch_does() -> None:
    """The same numbers and gradients in float64, of the bias too; without a gradient it is torch's own call."""
    torch.manual_seed(0)
    given = [torch.randn(2, 3, n, 5, dtype=torch.float64, requires_grad=True) for n in (4, 7, 7)]
    bias = torch.randn(1, 3, 4, 7, dtype=torch.float64, requires_grad=True)
    found, expected = attend(*given, bias), F.scaled_dot_product_attention(*given, attn_mask=bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    weights = torch.randn_like(expected)
    for one, two in zip(
        *(torch.autograd.grad(each, [*given, bias], weights) for each in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-13)
    with torch.no_grad():
        assert attend(*given, bias).equal(F.scaled_dot_product_attention(*given, attn_mask=bias))
