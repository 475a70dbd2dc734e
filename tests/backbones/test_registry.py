"""Backbones by name: what is asked for is what comes, and what can't be is refused with the way out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_vit.backbones import backbone_info, create_backbone, list_backbones
from ssl_vit.backbones.kinds import kind_by_layers, kind_of
from ssl_vit.backbones.registry import usual_size
from ssl_vit.errors import UserError

VIT: dict[str, Any] = {"patch_size": 8, "img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
NAME = "vit_tiny_patch16_224"


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_same_seed_gives_timms_weights() -> None:
    torch.manual_seed(3)
    ours = create_backbone(NAME, model_args=VIT)
    torch.manual_seed(3)
    theirs = timm.create_model(NAME, num_classes=0, **VIT)
    for (name, value), (_, expected) in zip(ours.model.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(value, expected), name
    assert ours.model_args == VIT


def test_image_size_is_what_timm_needs_to_take_the_weights() -> None:
    backbone = create_backbone(NAME, image_size=(64, 96), model_args={"depth": 1})
    assert backbone.model_args == {"depth": 1, "img_size": (64, 96)}
    assert backbone.info.size == (64, 96)
    assert backbone.model.pos_embed.shape == (1, 1 + 4 * 6, 192)
    assert create_backbone(NAME, image_size=224, model_args={"depth": 1}).model_args == {"depth": 1}
    assert create_backbone("resnet18", image_size=96).model_args == {}


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"name": "vit_tiny_patch16_225"}, "vit_tiny_patch16_225: no such backbone; did you mean vit_tiny_patch16_224"),
        ({"model_args": {"patchsize": 8}}, "model_args.patchsize: .* did you mean patch_size"),
        ({"model_args": {"num_classes": 10}}, "model_args.num_classes: not for the user to set"),
        ({"model_args": {"drop_path_rate": 0.1}}, "use drop_path"),
        ({"model_args": {"embed_dim": 50}}, "timm can't build it with .*embed_dim=50"),
        ({"model_args": {"img_size": 32}, "image_size": 64}, "give one of them"),
        ({"image_size": 100}, "can't take images of 100×100 pixels"),
        ({"name": "vgg11", "drop_path": 0.1}, "vgg11 has no stochastic depth; set drop_path to 0"),
        ({"name": "hrnet_w18_small", "model_args": {"no_such": 1}}, "model_args.no_such: hrnet_w18_small has no such"),
    ],
)
def test_refused(kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        create_backbone(**{"name": NAME, **kwargs})


def test_drop_path_reaches_the_blocks() -> None:
    rates = [block.drop_path1 for block in create_backbone(NAME, drop_path=0.2, model_args=VIT).model.blocks]
    assert [getattr(rate, "drop_prob", 0.0) for rate in rates] == pytest.approx([0.0, 0.2])
    assert isinstance(create_backbone(NAME, model_args=VIT).model.blocks[1].drop_path1, nn.Identity)


def test_info_costs_no_weights_and_tells_the_truth() -> None:
    info = backbone_info("vit_base_patch16_224")
    assert (info.parameters, info.dim, info.patch, info.kind) == (85_798_656, 768, 16, "transformer")
    assert (info.any_size, info.multiple, info.family) == (True, 16, "vision_transformer")
    # Swin-T without a head, as published for EsViT (arXiv 2106.09785)
    assert backbone_info("swin_tiny_patch4_window7_224").parameters == 27_519_354
    assert backbone_info("beit_base_patch16_224").any_size is False


def test_list_is_cheap_for_many_and_full_for_few() -> None:
    everything = list_backbones()
    assert {row.name for row in everything} == set(timm.list_models())
    assert all(row.info is None for row in everything)
    (row,) = list_backbones("test_resnet")
    assert row.info is not None
    assert (row.family, row.kind, row.info.dim) == ("resnet", "convolutional", 96)
    (row,) = [row for row in everything if row.name == "rest_lite"]
    assert (row.parameters, row.paper) == (
        10_508_300 - 513_000,
        "arXiv:2105.13677",
    )  # as published, less the classifier
    with pytest.raises(UserError, match="no backbone has such a name; did you mean"):
        list_backbones("resmet*")


def test_every_timm_family_has_a_kind() -> None:
    modules = {name: timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    unknown = [name for name, module in modules.items() if module.startswith("timm.") and not kind_of(name, module)]
    assert unknown == []


@pytest.mark.parametrize(
    ("name", "kind"), [("test_vit", "transformer"), ("test_resnet", "convolutional"), ("gmlp_ti16_224", "mlp")]
)
def test_kind_of_a_family_that_nobody_knows(name: str, kind: str) -> None:
    with torch.device("meta"):
        assert kind_by_layers(timm.create_model(name)) == kind


def test_copies_of_a_masked_backbone_have_their_own_token() -> None:
    student = create_backbone(NAME, model_args=VIT, masked=True).eval()
    assert student.mask_token is not None
    assert not [key for key in student.model.state_dict() if "mask" in key]
    teacher = copy.deepcopy(student)
    hidden = torch.ones(2, 4, 4, dtype=torch.bool)
    before = teacher(images(), hidden).pooled
    with torch.no_grad():
        student.mask_token.add_(1.0)
    assert torch.equal(teacher(images(), hidden).pooled, before)
    assert not torch.allclose(student(images(), hidden).pooled, before)
    student(images(), hidden).pooled[:, 0].sum().backward()  # the sum over channels is 0, by layer norm
    assert student.mask_token.grad is not None
    assert student.mask_token.grad.norm() > 0


def test_masks_need_the_token() -> None:
    with pytest.raises(ValueError, match="masked=True"):
        create_backbone(NAME, model_args=VIT)(images(), torch.ones(2, 4, 4, dtype=torch.bool))


def test_masked_patch_becomes_the_token() -> None:
    """Where the token is what the patches would be embedded as, hiding them changes nothing."""
    backbone = create_backbone(NAME, model_args=VIT, masked=True).eval()
    flat = torch.zeros(2, 3, 32, 32)  # every patch is embedded as the bias
    assert backbone.mask_token is not None
    backbone.mask_token.data.copy_(backbone.model.patch_embed.proj.bias)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = mask[1, 3, 0] = True
    torch.testing.assert_close(backbone(flat, mask).pooled, backbone(flat).pooled)
    plain = create_backbone(NAME, model_args=VIT).eval()
    plain.model.load_state_dict(backbone.model.state_dict())
    assert torch.equal(backbone(images()).pooled, plain(images()).pooled)


def test_coarse_mask_covers_several_patches_of_swin() -> None:
    args = {"embed_dim": 24, "depths": (2, 2, 1, 1)}
    backbone = create_backbone("swin_tiny_patch4_window7_224", image_size=64, model_args=args, masked=True).eval()
    coarse = torch.zeros(2, 2, 2, dtype=torch.bool)
    coarse[:, 1, 0] = True
    fine = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(backbone(images(64), coarse).pooled, backbone(images(64), fine).pooled)


@pytest.mark.parametrize(
    ("name", "patch", "stride"), [("augvit_small", 16, 16), ("rams_trans_base_patch32_448", 32, 32), ("swin", 4, 32)]
)
def test_mask_of_a_ragged_image_lies_on_the_patches(name: str, patch: int, stride: int) -> None:
    """100 × 132 pixels: the last patches, and cells of the mask, reach beyond the image."""
    args: dict[str, Any] = {"depth": 1}
    if name == "swin":
        name, args = "swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (2, 2, 1, 1)}
    backbone = create_backbone(name, model_args=args, masked=True).eval()
    embedded: list[Tensor] = []
    backbone.model.patch_embed.register_forward_hook(lambda *call: embedded.append(call[2]))
    pixels = torch.randn(1, 3, 100, 132)
    mask = torch.zeros(1, -(-100 // stride), -(-132 // stride), dtype=torch.bool)
    mask[0, 1, -1] = mask[0, -1, 0] = True
    backbone(pixels, mask)
    rows, columns = torch.arange(0, 100, patch), torch.arange(0, 132, patch)  # where each patch begins
    expected = mask[0][rows // stride][:, columns // stride].flatten()
    assert backbone.mask_token is not None
    assert torch.equal((embedded[0].flatten(1, 2).reshape(len(expected), -1) == backbone.mask_token).all(1), expected)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "pit_ti_224", "hiera_tiny_224", "test_mambaout"])
def test_one_pass_a_forward(name: str) -> None:
    backbone = create_backbone(name, image_size=64).eval()
    passes: list[str] = []
    first = next(module for module in backbone.model.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda *_: passes.append(name))
    backbone(images(64))
    assert passes == [name]


def test_names_of_other_packages() -> None:
    @timm.models.register_model
    def somebodys_resnet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return timm.create_model("test_resnet", **kwargs)

    backbone = create_backbone("somebodys_resnet", image_size=64)
    assert (backbone.info.family, backbone.info.kind, backbone.info.dim) == ("test_registry", "convolutional", 96)
    timm.models._registry._clear_model_entries("somebodys_resnet")
    timm.models._registry._model_entrypoints.pop("somebodys_resnet")


@pytest.mark.slow
def test_names_can_be_made() -> None:
    """Every fortieth name, and what is said of it, without its weights."""
    with torch.device("meta"):
        for name in timm.list_models()[::40]:
            backbone = create_backbone(name)
            assert backbone.info.dim == backbone(torch.zeros(2, 3, *backbone.info.size)).pooled.shape[1], name


@pytest.mark.parametrize(
    ("name", "args", "tokens"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 32, "depths": [2, 2], "num_heads": [4, 4], "window_size": 5}, 0),
        ("beit_base_patch16_224", {"embed_dim": 32, "depth": 1, "num_heads": 4, "patch_size": 8}, 1),
    ],
)
def test_each_head_begins_by_looking_at_another_neighbour(name: str, args: dict[str, Any], tokens: int) -> None:
    """Where timm's own attention looks from the middle of a window of 5 x 5, whatever the patches show."""
    backbone = create_backbone(name, image_size=40, model_args=args)
    tables = [table for key, table in backbone.named_parameters() if key.endswith("relative_position_bias_table")]
    of_class_token = [table[81:].clone() for table in tables]
    backbone.look_at_neighbours()
    attention = next(module for module in backbone.modules() if hasattr(module, "_get_rel_pos_bias"))
    looks = attention._get_rel_pos_bias()[0, :, 12 + tokens, tokens:].argmax(1)  # type: ignore[operator]  # timm's
    assert sorted(looks.tolist()) == [7, 11, 13, 17]  # above, left, right, below
    assert all(torch.equal(table[81:], kept) for table, kept in zip(tables, of_class_token, strict=True))
    assert all(table.requires_grad for table in tables)


def test_a_backbone_without_tables_of_biases_begins_as_it_was() -> None:
    backbone = create_backbone(NAME, model_args=VIT)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.look_at_neighbours()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_384", "swin_tiny_patch4_window7_224", "asmlp_tiny"])
def test_the_usual_size_is_what_a_look_would_find(name: str) -> None:
    assert usual_size(name) == backbone_info(name).size[0]
    with pytest.raises(UserError, match="no such backbone"):
        usual_size(name + "x")
