"""LoRA on backbones of several kinds: the file's own network at first, what it trains, and what becomes of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import ssl_vit
from ssl_vit.adapt import peft
from ssl_vit.adapt.lora import adapt, chosen, linear_layers, merged, merged_state, products
from ssl_vit.adapt.sparing import forget
from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.inspection import inspect
from ssl_vit.errors import ConfigError, UserError
from ssl_vit.methods.dino import DINO
from ssl_vit.run.prepare import build_method
from ssl_vit.training.checkpoint import newest_checkpoint
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.step import Learner, ReadyViews, take_step
from tests.methods.settings import COMMON, SMALL, TEACHER
from tests.runs import rows
from tests.test_families_train import resolved
from tests.training.test_accumulate import RECIPE

TINY: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2}
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {  # of layers that a word means, of the default ones
    "vit": ("vit_tiny_patch16_224", TINY | {"img_size": 32, "patch_size": 8}, 8),
    "eva": ("vit_small_patch16_dinov3_qkvb", TINY | {"img_size": 64, "init_values": 1.0}, 8),
    "beit": (
        "beit_base_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
        8,
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "depths": (1, 1), "embed_dim": 12, "num_heads": (2, 2), "window_size": 4},
        8,
    ),
    "convnext": ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20), "ls_init_value": 1.0}, 8),
    "mixer": ("mixer_s32_224", {"img_size": 64}, 32),
}
SOME = [pytest.param(kind, marks=[pytest.mark.slow] if kind == "mixer" else []) for kind in NETWORKS]
START = {"backbone.weights": "a file", "optim.heads_first": 0, "optim.backbone_rate": 1.0}
ALL = {
    "adapt.anchor_pooled_cosine": 0.5,
    "adapt.anchor_pooled_squared": 0.5,
    "adapt.anchor_patch_cosine": 0.5,
    "adapt.anchor_patch_squared": 0.5,
    "adapt.anchor_every": 2,
    "adapt.l2_sp": 0.5,
}


def network(kind: str) -> AdaptedBackbone:
    torch.manual_seed(0)
    name, args, _ = NETWORKS[kind]
    return create_backbone(name, model_args=args)


def images(backbone: AdaptedBackbone) -> torch.Tensor:
    return torch.randn(2, 3, *backbone.info.size, generator=torch.Generator().manual_seed(1))


def disturbed(backbone: AdaptedBackbone) -> AdaptedBackbone:
    """As training leaves it: no product is 0."""
    with torch.no_grad():
        for _, layer in products(backbone.model):
            layer.lora_B.normal_(std=0.1)
    return backbone


@pytest.mark.parametrize("kind", SOME)
def test_it_begins_as_the_network_that_it_was_and_keeps_all_names(kind: str) -> None:
    backbone = network(kind)
    with torch.no_grad():  # with gradients torch's attention takes another way where a bias is trained
        before, weights = backbone(images(backbone)), dict(backbone.model.state_dict())
        names = adapt(backbone, 3, ("attention", "mlp"))
        for mine, its in zip(backbone(images(backbone)), before, strict=True):
            assert torch.equal(mine, its)
    assert len(names) == NETWORKS[kind][2]
    after = backbone.model.state_dict()
    assert [key for key in after if key in weights] == list(weights)
    assert all(torch.equal(after[key], weights[key]) for key in weights)
    added = {key.rpartition(".")[2] for key in after.keys() - weights.keys()}
    assert added == {"lora_A", "lora_B"}
    trained = {name for name, weight in backbone.model.named_parameters() if weight.requires_grad}
    assert trained == {f"{name}.{part}" for name in names for part in added}


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_are_those_of_the_whole_weights_through_the_product(kind: str) -> None:
    """By the chain rule: of A it is B^T G, of B it is G A^T, where G is the gradient of W + B A."""
    backbone = network(kind).double()
    adapt(backbone, 3, ("linear",))
    disturbed(backbone)
    whole = merged(backbone)
    whole.model.requires_grad_(True)
    for each in (backbone, whole):
        seen = each(images(each).double())
        (seen.pooled.square().sum() + seen.patches.sin().sum()).backward()
    for name, layer in products(backbone.model):
        gradient = whole.model.get_parameter(f"{name}.weight").grad
        if gradient is None:  # a layer that this pass doesn't use
            continue
        torch.testing.assert_close(layer.lora_A.grad, layer.lora_B.T @ gradient, rtol=1e-9, atol=1e-12, msg=name)
        torch.testing.assert_close(layer.lora_B.grad, gradient @ layer.lora_A.T, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", SOME)
def test_merged_it_is_the_same_network_of_the_classes_it_was_built_of(kind: str) -> None:
    backbone, plain = network(kind), network(kind)
    adapt(backbone, 3, ("attention", "mlp"))
    disturbed(backbone)
    whole = merged(backbone)
    with torch.no_grad():
        mine, its, start = ((each.eval())(images(each)) for each in (whole, backbone, plain))
    for ours, theirs, before in zip(mine, its, start, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))
        assert float((ours - before).abs().max()) > 1e-5 * float(before.abs().max())
    assert [type(module) for module in whole.modules()] == [type(module) for module in plain.modules()]
    assert whole.model.state_dict().keys() == plain.model.state_dict().keys()
    again = merged_state(backbone.model.state_dict())
    assert all(torch.equal(again[key], value) for key, value in whole.model.state_dict().items())
    assert merged(plain) is plain


def test_layers_are_meant_by_words_ends_and_whole_names() -> None:
    backbone = network("vit")
    assert chosen(backbone, ("attention",)) == [f"blocks.{i}.attn.{part}" for i in (0, 1) for part in ("qkv", "proj")]
    assert chosen(backbone, ("mlp",)) == [f"blocks.{i}.mlp.{part}" for i in (0, 1) for part in ("fc1", "fc2")]
    assert chosen(backbone, ("blocks.1.attn.qkv", "fc2")) == [
        "blocks.0.mlp.fc2",
        "blocks.1.attn.qkv",
        "blocks.1.mlp.fc2",
    ]
    assert chosen(backbone, ("linear",)) == linear_layers(backbone)
    assert chosen(network("convnext"), ("attention", "mlp")) == chosen(network("convnext"), ("mlp",))


def refused(expected: str, **more: object) -> None:
    with pytest.raises((UserError, ConfigError), match=expected) as found:
        resolved("dino", str(more.pop("family", "vision_transformer")), **START | more)
    assert "\n" not in str(found.value)


def test_what_cannot_be_is_refused_in_a_line_before_any_image_is_read() -> None:
    refused(r"adapt.lora_rank: expected (an )?integer ≥ 1.*0", **{"adapt.lora_rank": 0})
    refused(
        r"adapt.lora_targets: 'qvk' is no linear layer of test_vit; expected attention, mlp, linear, or .* qkv, proj",
        **{"adapt.lora_rank": 4, "adapt.lora_targets": ["qkv", "qvk"]},
    )
    refused(r"adapt.lora_rank: \w*resnet\w* has no linear layers", family="resnet", **{"adapt.lora_rank": 4})
    with pytest.raises(
        UserError, match=r"adapt.lora_targets: convnext_tiny has no attention; expected attention, mlp, "
    ):
        chosen(network("convnext"), ("attention",))
    refused(r"adapt.lora_rank: .*add --weights FILE", **{"adapt.lora_rank": 4, "backbone.weights": None})
    refused(r"adapt.lora_rank: not with train.strategy=fsdp", **{"adapt.lora_rank": 4, "train.strategy": "fsdp"})
    with pytest.raises(UserError, match=r"adapt.lora_rank: detreg does not train the backbone"):
        resolved("detreg", "resnet", **START | {"adapt.lora_rank": 4})


def test_the_teacher_shares_what_is_frozen_and_averages_what_is_trained() -> None:
    config = resolved("dino", "vision_transformer", **RECIPE | START | {"adapt.lora_rank": 2, "method.momentum": 0.9})
    torch.manual_seed(0)
    method = build_method(config)
    assert isinstance(method, DINO)
    learner = Learner(new_fabric(config.train), method, config, per_epoch=4, total=4)
    for mine, its in zip(
        method.teacher.backbone.model.parameters(), method.student.backbone.model.parameters(), strict=True
    ):
        assert (mine is its) == (not its.requires_grad)
    frozen = {name: p.clone() for name, p in method.student.backbone.model.named_parameters() if not p.requires_grad}
    expected = [p.detach().clone() for p in method.teacher.parameters()]
    for step in range(3):
        momentum = 1 - (1 - 0.9) * (torch.tensor(torch.pi * step / 4).cos().item() + 1) / 2
        views = [torch.randn(view.count * 4, 3, view.size, view.size) for view in method.views().views]
        take_step(learner, ReadyViews(views), step)
        expected = [
            momentum * mine + (1 - momentum) * its
            for mine, its in zip(expected, method.student.parameters(), strict=True)
        ]
    for mine, its in zip(method.teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)
    moved = [float(layer.lora_B.abs().max()) for _, layer in products(method.teacher.backbone.model)]
    assert min(moved) > 0
    now = dict(method.student.backbone.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())


def test_less_is_kept_for_backward_and_the_numbers_are_the_same() -> None:
    """Norms and activations in between are not kept; a whole pass made again gives the same too."""
    found, kept = [], []
    for sparing, more in ((True, {}), (False, {}), (True, {"train.checkpoint_activations": True})):
        settings = RECIPE | START | {"adapt.lora_rank": 2, "optim.clip": 0.0} | more
        config = resolved("simclr", "vision_transformer", **settings)
        torch.manual_seed(0)
        method = build_method(config)
        if not sparing:
            forget(method)
        backbone = disturbed(method.student.backbone)
        sizes: dict[int, int] = {}
        weights = {weight.untyped_storage().data_ptr() for weight in backbone.parameters()}

        def note(tensor: torch.Tensor, sizes: dict[int, int] = sizes, weights: set[int] = weights) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            features = backbone(images(backbone))
        features.pooled.square().sum().backward()
        found.append([weight.grad for weight in backbone.parameters() if weight.grad is not None])
        kept.append(sum(sizes.values()))
    assert kept[0] < 0.75 * kept[1]
    for grads in found[1:]:
        for mine, its in zip(found[0], grads, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6 * float(its.abs().max()))


def pretrained(pictures: Path, out: Path, method: str, **more: object) -> Path:
    settings = {key: value for key, value in COMMON.items() if key not in ("backbone.name", "backbone.args")}
    settings |= {"method.name": method, "backbone.weights": TEACHER, "optim.lr": 1e-2, "optim.heads_first": 0}
    settings |= {f"method.{key}": value for key, value in SMALL[method].items()} | {"adapt.lora_rank": 2}
    settings |= {"data.kernels": "torch"}
    ssl_vit.pretrain(pictures / "train", out, settings | more)
    return out


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(pictures, tmp_path_factory.mktemp("lora") / "run", "dino", **ALL)


def test_a_run_exports_merged_weights_and_the_small_file(run: Path) -> None:
    start, export = inspect(TEACHER).state, load_file(run / "export" / "model.safetensors")
    small = load_file(run / "export-lora" / peft.WEIGHTS)
    assert export.keys() == start.keys()
    said = json.loads((run / "export-lora" / peft.CONFIG).read_text())
    assert (said["r"], said["lora_alpha"], said["base_model_name_or_path"]) == (2, 2, Path(TEACHER).name)
    apart = []
    for key, value in start.items():
        layer = f"base_model.model.{key.removesuffix('.weight')}"
        if f"{layer}.lora_A.weight" in small:
            value = value + small[f"{layer}.lora_B.weight"] @ small[f"{layer}.lora_A.weight"]
            apart.append(float((value - start[key]).abs().max()))
        torch.testing.assert_close(export[key], value, rtol=1e-6, atol=1e-7)
    assert len(apart) == len(said["target_modules"]) == 8
    assert min(apart) > 1e-5
    log = (run / "train.log").read_text()
    assert "LoRA beside 8 layers (qkv, proj, fc1, fc2)" in log
    assert "export-lora" in log


def test_a_run_logs_what_holds_it_to_its_start(run: Path) -> None:
    steps = [row for row in rows(run) if "grad_norm" in row]
    said = {key.removeprefix("penalty/") for key in steps[-1] if key.startswith("penalty/")}
    assert said == {key.removeprefix("adapt.") for key in ALL} - {"anchor_every"}
    assert steps[0]["penalty/l2_sp"] == 0
    assert steps[-1]["penalty/l2_sp"] > steps[3]["penalty/l2_sp"] > 0


def test_its_checkpoint_is_a_file_of_whole_weights(run: Path) -> None:
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    found = inspect(newest)
    export = load_file(run / "export" / "model.safetensors")
    assert found.state.keys() == export.keys()
    for key, value in export.items():
        torch.testing.assert_close(found.state[key], value, rtol=0, atol=1e-7)


def test_peft_loads_the_small_file(run: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("peft", reason="peft is not installed: pip install 'ssl_vit[peft]'")
    whole = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).eval()
    base = copy.deepcopy(whole)
    base.load_state_dict(inspect(TEACHER).state)
    noise = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected, start = whole(noise), base(noise)
    loaded = library.PeftModel.from_pretrained(base, str(run / "export-lora")).eval()
    with torch.inference_mode():
        found = loaded(noise)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, start, atol=1e-4)
    state = loaded.merge_and_unload().state_dict()
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-6, atol=1e-7)
    save_file(state, tmp_path / "merged.safetensors")


def test_averages_of_a_run_are_whole_weights_too(pictures: Path, tmp_path: Path) -> None:
    more = {"train.ema": 0.5, "train.precision": "bf16-mixed", "train.epochs": 1, "optim.warmup_epochs": 0.0}
    out = pretrained(pictures, tmp_path / "run", "simmim", **more)
    names = inspect(TEACHER).state.keys()
    for folder in ("export", "export-ema"):
        assert load_file(out / folder / "model.safetensors").keys() == names
