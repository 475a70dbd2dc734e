"""timm's mixers at any size: timm's own outputs at the size they are built for, matrices interpolated at another."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.mlp import GatedMlp, GluMlp
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from torch import Tensor, nn

from ssl_vit.backbones import backbone_info, create_backbone, mixing
from ssl_vit.backbones.timm_mixers import free_sizes
from ssl_vit.export import onnx
from tests.backbones.families.compiled import check_compiled

KINDS: dict[str, dict[str, Any]] = {
    "mixer": {},
    "gmixer": {"mlp_layer": GluMlp, "mlp_ratio": (1.0, 4.0)},
    "resmlp": {"block_layer": ResBlock, "norm_layer": Affine, "mlp_ratio": 4},
    "gmlp": {"block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp, "mlp_ratio": 4},
}
BUILT = 64
kinds = pytest.mark.parametrize("kind", KINDS)
sizes = pytest.mark.parametrize("size", [(32, 32), (96, 48), (48, 96), (16, 16), (70, 33), (112, 64)])


def build(kind: str) -> tuple[Any, Any]:
    """A small one of any size, and timm's with the same weights, which leave no branch silent; in float64."""
    torch.manual_seed(0)
    theirs: Any = MlpMixer(0, BUILT, num_blocks=2, embed_dim=24, **KINDS[kind]).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    return free_sizes(copy.deepcopy(theirs)), theirs


def resized(x: Tensor, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """A map [B, N, D] of a grid on another one, by torch's own triangular filter."""
    maps = x.transpose(1, 2).reshape(len(x), -1, *size)
    return F.interpolate(maps, to, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


def by_hand(model: Any, images: Tensor) -> Tensor:
    """What a mixer of timm says of padded images when each mixing of tokens happens on the grid it is built for."""
    down, right = (-side % 16 for side in images.shape[-2:])
    embedded = model.stem.proj(F.pad(images, (0, right, 0, down)))
    grid, built = (embedded.shape[2], embedded.shape[3]), model.stem.grid_size

    def there(x: Tensor, layer: nn.Linear) -> Tensor:
        return F.linear(resized(x, grid, built).transpose(1, 2), layer.weight, layer.bias).transpose(1, 2)

    def mixed(block: Any, x: Tensor) -> Tensor:
        if hasattr(block, "mlp_tokens"):
            hidden = block.mlp_tokens(resized(block.norm1(x), grid, built).transpose(1, 2))
            x = x + resized(hidden.transpose(1, 2), built, grid)
        elif hasattr(block, "linear_tokens"):
            x = x + block.ls1 * resized(there(block.norm1(x), block.linear_tokens), built, grid)
        else:
            mlp = block.mlp_channels
            u, v = mlp.act(mlp.fc1(block.norm(x))).chunk(2, dim=-1)
            return x + mlp.fc2(u * resized(there(mlp.gate.norm(v), mlp.gate.proj), built, grid))
        branch = block.mlp_channels(block.norm2(x))
        return x + (block.ls2 * branch if hasattr(block, "ls2") else branch)

    x = embedded.flatten(2).transpose(1, 2)
    for block in model.blocks:
        x = mixed(block, x)
    return model.norm(x)


def check_timms(ours: Any, theirs: Any) -> None:
    """Features and gradients at the size both are built for."""
    images = torch.randn(2, 3, BUILT, BUILT)
    ours(torch.randn(1, 3, 32, 128))  # as many tokens, on another grid
    for model in (ours, theirs):
        model.forward_features(images).square().sum().backward()
    assert torch.equal(ours(images), theirs(images))
    assert torch.equal(ours.forward_intermediates(images)[1][0], theirs.forward_intermediates(images)[1][0])
    grads = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    assert list(grads) == [key for key, _ in ours.named_parameters()]
    assert all(torch.equal(parameter.grad, grads[key]) for key, parameter in ours.named_parameters())


@kinds
def test_at_its_own_size_it_is_timms_to_the_bit_after_other_sizes_too(kind: str) -> None:
    ours, theirs = build(kind)
    check_timms(ours.float(), theirs.float())


SLOW = ["mixer_s16_224", "gmixer_12_224", "resmlp_12_224"]


@pytest.mark.parametrize("name", ["gmlp_ti16_224", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_those_of_timms_registry_take_any_size(name: str) -> None:
    ours: Any = create_backbone(name, image_size=BUILT).eval()
    assert (ours.info.any_size, ours.info.multiple) == (True, 1)
    theirs = timm.create_model(name, num_classes=0, img_size=BUILT).eval()
    theirs.load_state_dict(ours.model.state_dict())
    check_timms(ours.model, theirs)


@kinds
@sizes
def test_at_another_size_matrices_are_interpolated(kind: str, size: tuple[int, int]) -> None:
    ours, theirs = build(kind)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        expected = by_hand(theirs, images)
        found = ours.forward_features(images)
        (last,) = ours.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert last.shape[2:] == tuple(-(-side // 16) for side in size)
    assert torch.equal(last.flatten(2).transpose(1, 2), found)


def test_the_matrices_are_those_of_torchs_own_interpolation() -> None:
    x = torch.randn(1, 4 * 5, 3, dtype=torch.float64)
    for to in ((2, 3), (9, 5), (1, 1), (7, 11)):
        found = mixing.grid_resampling((4, 5), to, x) @ x
        torch.testing.assert_close(found, resized(x, (4, 5), to), rtol=1e-10, atol=1e-10)


@kinds
def test_two_sizes_in_one_step_and_recomputed_give_the_gradients_of_both(kind: str) -> None:
    """Global and local crops pass before the backward pass, which may compute their blocks again."""
    ours, _ = build(kind)
    images = [torch.randn(1, 3, side, side, dtype=torch.float64) for side in (64, 32, 48)]
    found = []
    for again in (False, True):
        ours.set_grad_checkpointing(again)
        ours.zero_grad()
        sum(ours.forward_features(each).square().mean() for each in images).backward()
        found.append([parameter.grad.clone() for parameter in ours.parameters()])
    torch.testing.assert_close(found[0], found[1])
    assert all(gradient.any() for gradient in found[0])


@kinds
def test_a_copy_sees_sizes_of_its_own(kind: str) -> None:
    """A teacher is a copy of its student."""
    ours, _ = build(kind)
    other = copy.deepcopy(ours)
    small, large = torch.randn(1, 3, 32, 128).double(), torch.randn(1, 3, 128, 32).double()
    with torch.no_grad():
        expected = ours(small)
        embedded = ours.stem(small)
        other(large)
        assert torch.equal(ours.forward_head(ours.norm(ours.blocks(embedded))), expected)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(ours(small), expected)


def test_one_that_is_built_for_no_whole_patches_stays_timms() -> None:
    assert not backbone_info("mixer_s16_224", image_size=70).any_size


@pytest.mark.slow  # seconds, and a break costs speed alone
@kinds
@pytest.mark.parametrize("side", [64, 32])
def test_compiles_as_one_graph(kind: str, side: int) -> None:
    ours = build(kind)[0].float()
    check_compiled(ours, torch.randn(2, 3, side, side))


@pytest.mark.slow
def test_onnxruntime_gives_our_outputs(tmp_path: Path) -> None:
    """Also where another size was seen before; a graph is of the size that it is written for."""
    backbone = create_backbone("gmlp_ti16_224", image_size=32).eval()
    backbone(torch.randn(1, 3, 64, 48))
    onnx.write(backbone, tmp_path, {})
    assert (onnx.verify(tmp_path, backbone).max_difference or 0) < 1e-4
