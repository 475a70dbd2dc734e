"""Weights of others as they are published: found wherever they lie, normalised rightly, resized by their own grid."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import eva, vision_transformer
from torch import Tensor

from ssl_vit.backbones.registry import create_backbone
from ssl_vit.checkpoints.colours import IMAGENET
from ssl_vit.checkpoints.inspection import inspect
from ssl_vit.checkpoints.load import backbone_of_file, fitted_weights, load_weights
from ssl_vit.cli import main
from ssl_vit.errors import UserError
from ssl_vit.export.api import export
from tests.checkpoints.files import filled, official, save, shapes_of, trainer
from tests.export.conftest import randomised

TINY = "vit_tiny_patch16_224"
HALF = ((0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """The weights of a whole ViT-Ti/16."""
    return {key: value.clone() for key, value in randomised(TINY).model.state_dict().items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value + 1 for key, value in state.items()}


NESTED: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "model.teacher.backbone. of state_dict": lambda w: {
        "state_dict": under("model.student.backbone.", other(w)) | under("model.teacher.backbone.", w)
    },
    "model.backbone.": lambda w: under("model.backbone.", w),
    "module.encoder. of state_dict": lambda w: {
        "state_dict": under("module.encoder.", w) | {"module.fc.bias": w["norm.bias"]}
    },
    "base_model.": lambda w: under("base_model.", w),
    "_orig_mod.net. of model": lambda w: {"model": under("_orig_mod.net.", w)},
    "all names of state_dict_ema": lambda w: {"state_dict": other(w), "state_dict_ema": w},
    "all names of model_ema": lambda w: trainer(model=other(w), model_ema=w),
    "all names of net": lambda w: {"net": w, "epoch": 7},
    "m. of ema.module": lambda w: {"ema": {"module": under("m.", w), "decay": 0.9}},
    "module. of target_encoder": lambda w: {
        "encoder": under("module.", other(w)),
        "predictor": {"module.norm.bias": w["norm.bias"]},
        "target_encoder": under("module.", w),
    },
    "model.teacher. of state_dict": lambda w: {
        "state_dict": under("model.teacher.", w),
        "pytorch-lightning_version": "2",
    },
}


@pytest.mark.parametrize("place", NESTED)
def test_the_place_whose_weights_fit_is_taken_and_said(
    place: str, whole: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = save(tmp_path, NESTED[place](whole))
    with caplog.at_level("INFO", "ssl_vit"):
        found = backbone_of_file(file)
    for key, value in found.model.state_dict().items():
        assert torch.equal(value, whole[key]), key
    assert place in caplog.text
    assert place in str(inspect(file))


def test_a_network_of_another_size_is_found_by_its_own_names(tmp_path: Path) -> None:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    source = randomised(TINY, model_args=args)
    state = under("net.visual.", source.model.state_dict()) | {"net.text.bias": torch.zeros(3)}
    backbone = create_backbone(TINY, model_args=args)
    load_weights(backbone, save(tmp_path, {"module": state}))
    assert torch.equal(backbone.model.norm.weight, source.model.norm.weight)


def test_a_network_whose_names_nobody_knows_is_found_by_its_own(tmp_path: Path) -> None:
    source = randomised("mobilenetv3_small_050")
    backbone = create_backbone("mobilenetv3_small_050")
    load_weights(backbone, save(tmp_path, {"state_dict": under("model.encoder.", source.model.state_dict())}))
    assert torch.equal(backbone.model.conv_stem.weight, source.model.conv_stem.weight)


def test_where_nothing_fits_the_prefixes_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = filled({f"net.tower.{name}.weight": [3, 3] for name in "abc"} | {"net.head.weight": [2, 3]})
    file = save(tmp_path, {"state_dict": state})
    with pytest.raises(UserError, match=r"add --backbone NAME") as refusal:
        backbone_of_file(file)
    assert "net.tower. (3), net.head. (1)" in str(refusal.value)
    with pytest.raises(UserError, match=r"cls_token .* is missing.*net\.tower\. \(3\)"):
        backbone_of_file(file, TINY)
    assert main(["inspect", str(file)]) == 0
    assert "net.tower. (3), net.head. (1)" in capsys.readouterr().out


def classified(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}


BARE: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Any]], Any]] = {
    "DINO's, MAE's or MoCo's backbone alone": (lambda w: w, IMAGENET),
    "MAE's encoder": (lambda w: {"model": w}, IMAGENET),
    "DeiT's": (lambda w: {"model": classified(w)}, IMAGENET),
    "timm's with its classifier": (classified, HALF),
    "timm's training": (lambda w: {"state_dict": classified(w), "arch": TINY}, HALF),
}


@pytest.mark.parametrize("what", BARE)
def test_a_bare_vit_warns_of_the_mean_that_is_assumed(
    what: str, whole: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write, colours = BARE[what]
    file = save(tmp_path, write(whole))
    found = backbone_of_file(file)
    assert (found.info.mean, found.info.std) == colours
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    said = warning.getMessage()
    assert "a guess, as the file does not say it" in said
    assert f"mean {','.join(f'{value:g}' for value in colours[0])}" in said
    assert "--mean R,G,B --std R,G,B" in said
    caplog.clear()
    given = backbone_of_file(file, mean=(0.1, 0.2, 0.3), std="0.4,0.5,0.6")
    assert (given.info.mean, given.info.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_is_known_is_said_and_does_not_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(timm.create_model("resnet18", num_classes=5).state_dict(), tmp_path / "a.pth")
    with caplog.at_level("INFO", "ssl_vit"):
        assert backbone_of_file(tmp_path / "a.pth").info.mean == IMAGENET[0]
    [said] = [record for record in caplog.records if "normalised" in record.getMessage()]
    assert said.levelno == logging.INFO
    backbone = create_backbone(TINY)
    load_weights(
        backbone, save(tmp_path, trainer(teacher=under("backbone.", backbone.model.state_dict()), dino_loss={}))
    )
    assert backbone.info.mean == IMAGENET[0], "DINO's, by the layout of its file"


@pytest.mark.parametrize("bad", ["0.5", "0.5,0.5,x", "1,2,3", "0.5,0.5,nan"])
def test_a_mean_that_is_none_is_refused(bad: str, tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match="--mean"):
        backbone_of_file(tmp_path / "a.pth", mean=bad)


def test_the_mean_counts_in_every_command(
    whole: dict[str, Tensor], pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And what a command prints beside its result is on stderr, where the guess is warned of."""
    file = save(tmp_path, whole)
    sides = ["--train", str(pictures / "train"), "--val", str(pictures / "val")]
    given = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
    assert main(["eval", "knn", str(file), *sides, *given]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["protocol"]["mean"] == [0.5] * 3
    assert "a guess" not in err
    features = []
    for more in ([], given):
        made = tmp_path / f"{len(features)}.npz"
        assert main(["embed", str(file), sides[1], "--out", str(made), *more]) == 0
        out, err = capfd.readouterr()
        assert (out, "a guess" in err) == (f"{made}\n", more == [])
        features.append(np.load(made)["features"])
    assert not np.allclose(*features)


SHAPES = {"cls_token": [1, 1, 384], "register_tokens": [1, 4, 384], "mask_token": [1, 384]}


def dinov2(registers: bool, grid: int, name: str) -> tuple[dict[str, Tensor], torch.nn.Module]:
    """An official file of DINOv2 with random weights, and timm's model by timm's own map from it."""
    model = timm.create_model(name, num_classes=0, depth=2, img_size=28).eval()
    size = model.embed_dim
    generator = torch.Generator().manual_seed(0)
    state = {"mask_token": torch.zeros(1, size), "cls_token": torch.randn(1, 1, size, generator=generator)}
    if registers:
        state["register_tokens"] = torch.randn(1, 4, size, generator=generator)
    state["pos_embed"] = torch.randn(1, 1 + grid * grid, size, generator=generator)
    names = {"fc1": "w12", "fc2": "w3"} if "giant" in name else {}
    for key, value in model.state_dict().items():
        if key not in ("cls_token", "reg_token", "pos_embed"):
            for ours, theirs in names.items():
                key = key.replace(f"mlp.{ours}.", f"mlp.{theirs}.")
            state[key] = 0.05 * torch.randn(value.shape, generator=generator)
    model.load_state_dict(vision_transformer.checkpoint_filter_fn(dict(state), model))
    return state, model


@pytest.mark.parametrize(
    ("size", "grid", "registers"), [("small", 5, False), ("small", 2, True), ("small", 5, True), ("giant", 5, True)]
)
def test_official_files_of_dinov2(size: str, grid: int, registers: bool, tmp_path: Path) -> None:
    """With registers, with the gated MLP, with positions of another grid: as timm's own map makes of them."""
    name = f"vit_{size}_patch14{'_reg4' * registers}_dinov2"
    state, expected = dinov2(registers, grid, name)
    file = save(tmp_path, state)
    backbone = create_backbone(name, image_size=28, model_args={"depth": 2}).eval()
    found = load_weights(backbone, file)
    assert found.layout == "DINOv2 (arXiv 2304.07193)"
    assert found.left == ["mask_token"]
    images = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        wanted = expected.forward_head(expected.forward_features(images), pre_logits=True)
        torch.testing.assert_close(backbone(images).pooled, wanted)
    assert backbone.info.mean == IMAGENET[0]


def test_a_whole_file_of_dinov2_with_registers_is_recognised(tmp_path: Path) -> None:
    shapes = shapes_of(create_backbone("vit_small_patch14_reg4_dinov2"))
    state = filled({key: shape for key, shape in shapes.items() if key != "reg_token"} | SHAPES)
    state |= filled({"pos_embed": [1, 1370, 384]})
    found = inspect(save(tmp_path, state))
    assert str(found.architecture) == "vit_small_patch14_reg4_dinov2"
    plain = {key: value for key, value in state.items() if key != "register_tokens"}
    assert str(inspect(save(tmp_path, plain)).architecture) == "vit_small_patch14_dinov2"


@pytest.mark.parametrize(("size", "biased"), [("small", True), ("small_plus", False)])
def test_official_files_of_dinov3(size: str, biased: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = f"vit_{size}_patch16_dinov3{'_qkvb' * biased}"
    expected = timm.create_model(name, num_classes=0).eval()
    generator = torch.Generator().manual_seed(0)
    state = {"storage_tokens": torch.randn(1, 4, 384, generator=generator), "mask_token": torch.zeros(1, 384)}
    state["rope_embed.periods"] = torch.ones(16)
    names = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "fc1_g": "w1", "fc1_x": "w2"}
    names |= {"fc2": "w3"} if size == "small_plus" else {}
    for key, value in expected.state_dict().items():
        if key == "reg_token" or key.endswith("_bias"):
            continue
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        state[key] = 0.05 * torch.randn(value.shape, generator=generator)
        if key.endswith("attn.qkv.weight"):
            bias = torch.randn(3 * 384, generator=generator) if biased else torch.zeros(3 * 384)
            state[key.replace("weight", "bias")] = bias
            state[key.replace("weight", "bias_mask")] = torch.ones(3 * 384)
    file = save(tmp_path, state)
    found = backbone_of_file(file).eval()
    assert capfd.readouterr().out == "", "timm's own map prints to stdout"
    assert (found.info.name, found.info.mean) == (name, IMAGENET[0])
    assert inspect(file).layout == "DINOv3 (arXiv 2508.10104)"
    expected.load_state_dict(eva.checkpoint_filter_fn(dict(state), expected))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = expected.forward_head(expected.forward_features(images), pre_logits=True)
        torch.testing.assert_close(found(images).pooled, wanted)
    load_weights(create_backbone(f"vit_{size}_patch16_dinov3_qkvb"), file)  # a bias of 0 is one too


def test_official_names_of_convnext(tmp_path: Path) -> None:
    source = randomised("convnext_tiny", model_args={"depths": (1, 1, 1, 1)})
    state = {official_of_convnext(key): value for key, value in source.model.state_dict().items()}
    backbone = create_backbone("convnext_tiny", model_args={"depths": (1, 1, 1, 1)})
    load_weights(backbone, save(tmp_path, {"model": state}))
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(value, source.model.state_dict()[key]), key


def described(folder: Path, size: tuple[int, int]) -> Path:
    """A timm folder of a small network whose positions say their column, for images of this size."""
    args = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": size}
    model = timm.create_model(TINY, num_classes=0, **args)
    rows, columns = size[0] // 8, size[1] // 8
    with torch.no_grad():
        place = torch.arange(columns).repeat(rows).float()[:, None].expand(-1, 48)
        model.pos_embed.copy_(torch.cat([torch.zeros(1, 48), place])[None])
    timm.models.save_for_hf(model, folder, model_args=args)
    return folder


@pytest.mark.parametrize("target", [(32, 32), (64, 16), (64, 64)])
def test_positions_of_a_grid_that_is_no_square_are_resized_by_it(
    target: tuple[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """32 × 2 patches, of which a square would be 8 × 8; (64, 64) has as many patches as the file has positions."""
    args = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    backbone = create_backbone(TINY, image_size=target, model_args=args)
    with caplog.at_level("INFO", "ssl_vit"):
        load_weights(backbone, described(tmp_path / "a", (256, 16)))
    rows, columns = target[0] // 8, target[1] // 8
    grid = backbone.model.pos_embed[0, 1:, 0].detach().unflatten(0, (rows, columns))
    assert torch.allclose(grid, grid[:1], atol=1e-5), "a position is still its column, whatever the row"
    assert f"of 32 × 2 to {rows} × {columns} patches" in caplog.text


def test_positions_whose_grid_nobody_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    for size, says in (((64, 24), "grid is not known, or is no square"), ((128, 32), "taken for a grid of 8 × 8")):
        model = timm.create_model(TINY, num_classes=0, **args, img_size=size)
        torch.save(model.state_dict(), tmp_path / "a.pth")
        backbone = create_backbone(TINY, image_size=(32, 16), model_args=args)
        found = inspect(tmp_path / "a.pth")
        if "no square" in says:
            with pytest.raises(UserError, match=says):
                fitted_weights(backbone, found)
        else:
            assert says in "".join(fitted_weights(backbone, found)[1])


def test_tables_of_windows_that_are_no_squares(tmp_path: Path) -> None:
    args = {"embed_dim": 48, "depth": 1, "num_heads": 3, "patch_size": 8}
    model = timm.create_model("beit_base_patch16_224", num_classes=0, img_size=(64, 16), **args)
    with torch.no_grad():
        table = model.blocks[0].attn.relative_position_bias_table
        table[: 15 * 3] = torch.arange(3.0).repeat(15)[:, None]  # the offset along a row
    timm.models.save_for_hf(model, tmp_path / "a", model_args=args | {"img_size": (64, 16)})
    backbone = create_backbone("beit_base_patch16_224", image_size=(32, 16), model_args=args)
    load_weights(backbone, tmp_path / "a")
    found = backbone.model.blocks[0].attn.relative_position_bias_table.detach()
    torch.testing.assert_close(found[: 7 * 3, 0], torch.arange(3.0).repeat(7))


@pytest.mark.export
@pytest.mark.parametrize("to", ["timm", "torchvision", "mmdet"])
def test_weights_of_others_are_exported_as_a_runs_are(
    to: str, whole: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(tmp_path, whole)
    assert main(["export", str(file), "--to", to]) == 0
    said, _, snippet = capsys.readouterr().out.partition("\n")
    folder = tmp_path / f"checkpoint-{to}"
    assert said.startswith((f"{folder}: verified in ", f"{folder}: names checked for "))
    exec(snippet, {})
    card = (folder / "README.md").read_text()
    assert "# Backbone, exported by ssl_vit" in card
    assert "- Weights: checkpoint.pth" in card
    assert f"minus {IMAGENET[0]}" in card
    assert main(["export", str(file), "--to", to]) == 2
    assert "never overwritten" in capsys.readouterr().err


def test_an_export_of_others_is_a_folder_as_any(whole: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(whole, tmp_path / "a.safetensors")
    made = export(tmp_path / "a.safetensors", out=tmp_path / "b", backbone=TINY, mean=(0.1,) * 3, std=(0.2,) * 3)
    assert made.max_difference == 0
    found = backbone_of_file(tmp_path / "b")
    assert (found.info.mean, found.info.std) == ((0.1,) * 3, (0.2,) * 3)
    again = export(tmp_path / "b", to="safetensors")
    assert again.folder == tmp_path / "b-safetensors"
    with pytest.raises(UserError, match="no such file or folder"):
        export(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"add --backbone NAME"):
        export(save(tmp_path, filled(official("dino_vit"))))


def shapes_of_timm(name: str) -> dict[str, list[int]]:
    """Names and shapes of a model's weights."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def official_of_tips(name: str) -> dict[str, torch.Tensor]:
    """A multimodal file: the vision encoder under DINOv2's names, a text encoder beside it."""
    shapes = shapes_of_timm(name)
    width, patches = shapes["cls_token"][-1], shapes["pos_embed"][1]
    theirs = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"} if "giant" in name else {}
    names = {}
    for key, shape in shapes.items():
        for ours, its in theirs.items():
            key = key.replace(ours, its)
        names[key] = shape
    names |= {"register_tokens": names.pop("reg_token"), "pos_embed": [1, patches + 1, width], "mask_token": [1, width]}
    return filled(names, "vision_encoder.") | filled({"text_encoder.token_embedding.weight": [32000, 8]})


@pytest.mark.parametrize(
    "size", ["base", *(pytest.param(size, marks=pytest.mark.slow) for size in ("large", "so400m", "giant"))]
)
def test_files_of_tipsv2(size: str, tmp_path: Path) -> None:
    name = f"vit_{size}_patch14_reg1_tipsv2"
    found = inspect(save(tmp_path, official_of_tips(name)))
    assert (found.layout, str(found.architecture)) == ("TIPSv2 (arXiv 2604.12012)", name)
    assert set(found.left) == {"text_encoder.token_embedding.weight", "mask_token"}
    assert "mean 0,0,0 and deviation 1,1,1: as TIPSv2 uses" in str(found)
    ours = inspect(save(tmp_path, filled(shapes_of_timm(name))))
    assert (ours.layout, str(ours.architecture), ours.left) == ("timm", name, [])
    assert f"mean 0,0,0 and deviation 1,1,1: as the only weights of {name} are" in str(ours)


def test_weights_of_tipsv2_get_to_their_places(tmp_path: Path) -> None:
    name, args = "vit_base_patch14_reg1_tipsv2", {"depth": 1, "embed_dim": 24, "num_heads": 2}
    source = randomised(name, image_size=56, model_args=args)
    state = dict(source.model.state_dict())
    state["register_tokens"], positions = state.pop("reg_token"), state.pop("pos_embed")
    at_class = torch.randn(1, 1, 24)
    state |= {"cls_token": state["cls_token"] - at_class, "pos_embed": torch.cat([at_class, positions], 1)}
    file = save(tmp_path, {f"vision_encoder.{key}": value for key, value in state.items()} | {"text.w": torch.ones(2)})
    backbone = create_backbone(name, image_size=56, model_args=args)
    load_weights(backbone, file)
    for key, value in source.model.state_dict().items():
        torch.testing.assert_close(backbone.model.state_dict()[key], value, msg=key)
    assert (backbone.info.mean, backbone.info.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_dinov3_qkvb", "convnext_tiny"])
def test_files_of_eupe(name: str, tmp_path: Path) -> None:
    """As DINOv3's, with heads beside the backbone that learnt from several teachers."""
    shapes = shapes_of_timm(name)
    heads = filled({"projectors.dinov3.mlp.0.weight": [512, 192], "projectors.dinov3.mlp.0.bias": [512]})
    plain = inspect(save(tmp_path, filled(shapes)))
    timms = "timm" if name == "convnext_tiny" else "DINOv3 or EUPE"  # both have timm's names for DINOv3
    assert (plain.layout, plain.names, str(plain.architecture)) == (timms, "timm", name)
    if name == "convnext_tiny":
        official = {official_of_convnext(key): shape for key, shape in shapes.items()}
        official |= {f"norms.{stage}.weight": [width] for stage, width in enumerate((96, 192, 384, 768))}
    else:
        official = {"storage_tokens": shapes["reg_token"], "mask_token": [1, 192], "rope_embed.periods": [16]}
        for key, shape in shapes.items():
            if key == "reg_token" or key.endswith("_bias"):
                continue
            official[key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = shape
            if key.endswith("attn.qkv.weight"):
                official[key.replace("weight", "bias")] = [3 * 192]
    found = inspect(save(tmp_path, filled(official) | heads))
    assert (found.layout, str(found.architecture)) == ("EUPE (arXiv 2603.22387)", name)
    assert set(heads) <= set(found.left)
    assert "as EUPE uses" in str(found)
    with torch.device("meta"):
        fitted_weights(create_backbone(name), found)


def official_of_convnext(key: str) -> str:
    """ConvNeXt's own name of a weight of timm's."""
    key = key.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.")
    parts = key.split(".")
    if ".downsample." in key:
        key = f"downsample_layers.{parts[1]}.{'.'.join(parts[3:])}"
    return key.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
