"""Pruning: gates change nothing, a threshold keeps exactly a share, what is cut off was 0, and kills leave no trace."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.families.pruned_vit import PACE, Gate
from ssl_vit.backbones.penalties import collecting
from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.cli import main
from ssl_vit.compress.prune import Pruned, prune, shrink
from ssl_vit.compress.shrink import left_of_gates, prunable, shrunk, strongest
from ssl_vit.errors import UserError
from ssl_vit.export.api import export, hand_over
from tests.methods.settings import TEACHER
from tests.runs import Trap, finish

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
SETS = ("train.batch_size=8", "train.epochs=2", "data.workers=0", "train.precision=32-true", "train.checkpoint_every=4")
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_tiny_patch16_224", {}),
    "mean of patches": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "registers, layer scale": ("vit_small_patch14_reg4_dinov2", {"patch_size": 8}),
    "pooled by attention": ("vit_base_patch16_siglip_224", {}),
    "norms of queries and keys": ("vit_tiny_patch16_224", {"qk_norm": True, "qkv_bias": False}),
    "no class token": ("deit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
}


def network(name: str = "vit_tiny_patch16_224", **args: Any) -> AdaptedBackbone:
    """A plain ViT whose weights are large enough for its blocks to matter."""
    torch.manual_seed(0)
    made = create_backbone(name, image_size=32, model_args=SMALL | args).eval()
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3) if weight.ndim > 1 else torch.nn.init.normal_(weight, 0.5, 0.2)
    return made


@pytest.mark.parametrize("kind", PLAIN)
def test_gates_change_nothing_and_are_penalised(kind: str) -> None:
    name, args = PLAIN[kind]
    plain = network(name, **args)
    gated = prunable(plain, 1e-4).train()
    gates = [module.factors().detach() for module in gated.modules() if isinstance(module, Gate)]
    assert [len(gate) for gate in gates] == [24, 24, 24, 96] * 3
    assert [round(float(gate.mean()), 2) for gate in gates] == [1.0] * 12
    with collecting() as penalties:
        gated(torch.zeros(1, 3, 32, 32))
    expected = 1e-4 * float(torch.cat(gates).abs().sum())
    assert float(penalties["gates"].detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_what_is_cut_off_was_multiplied_by_nothing(keep: float) -> None:
    """A network whose gates outside of what is left are 0 computes what the smaller one computes, pruned twice too."""
    gated = prunable(network(), 1e-4)
    torch.manual_seed(1)
    for _ in range(2):
        gates = [module for module in gated.modules() if isinstance(module, Gate)]
        for gate in gates:
            torch.nn.init.normal_(gate.tenths, std=1 / PACE)
        left = left_of_gates(gated.model, keep)
        picked = [
            kept for each in left for kept in (each.attn_inputs, each.values.flatten(), each.mlp_inputs, each.hidden)
        ]
        for gate, kept in zip(gates, picked, strict=True):
            mask = torch.zeros_like(gate.tenths).index_fill(0, kept, 1)
            gate.tenths.data.mul_(mask)
        small = shrunk(gated, left).eval()
        images = torch.randn(2, 3, 32, 32)
        with torch.inference_mode():
            ours, whole = small(images), gated.eval()(images)
        torch.testing.assert_close(ours.pooled, whole.pooled, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.patches, whole.patches, rtol=1e-4, atol=1e-5)
        assert small.info.parameters < gated.info.parameters
        assert not any(isinstance(module, Gate) for module in small.modules())
        gated = prunable(small, 1e-4)


def test_one_threshold_over_all_layers_keeps_exactly_the_share() -> None:
    """By hand: the strongest five of ten, of whichever layer, and of equals the first."""
    masks = strongest([torch.tensor([3.0, -9.0, 1.0, 1.0]), torch.tensor([0.5, 8.0, -7.0, 1.0, 1.0, 0.1])], 0.5)
    assert [mask.int().tolist() for mask in masks] == [[1, 1, 1, 0], [0, 1, 1, 0, 0, 0]]


def test_heads_of_a_block_keep_equally_many_values_and_no_layer_goes_altogether() -> None:
    gated = prunable(network(), 1e-4)
    with torch.no_grad():
        for gate in (module for module in gated.modules() if isinstance(module, Gate)):
            gate.tenths.zero_()
        first = gated.model.blocks[0].attn.proj_gate
        first.tenths[:4], first.tenths[16:18] = torch.tensor([4.0, 5.0, 6.0, 7.0]), 1.0  # heads of 8: 4, none, 2
    left = left_of_gates(gated.model, 6 / 504)
    assert left[0].heads.tolist() == [0, 2]
    assert left[0].values.tolist() == [[1, 2, 3], [16, 17, 18]]
    assert [len(each) for each in left[1]] == [1, 1, 1, 1, 1]


@pytest.fixture(scope="module")
def pruned(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    out = tmp_path_factory.mktemp("pruned") / "out"
    return prune(TEACHER, str(pictures / "train"), out, 0.5, sets=SETS)


def test_a_pruned_network_is_smaller_and_others_load_it(pruned: Pruned, tmp_path: Path) -> None:
    before, after = pruned.costs
    assert after.parameters < 0.8 * before.parameters
    assert after.gmacs < 0.7 * before.gmacs
    config = json.loads((pruned.folder / "export" / "config.json").read_text())
    assert config["architecture"] == "pruned_vit"
    assert len(config["model_args"]["hidden"]) == 2
    assert config["ssl_vit"]["pruned"] == {"keep": 0.5}
    loaded = timm.create_model(f"local-dir:{pruned.folder / 'export'}", pretrained=True)
    assert loaded.blocks[0].mlp.fc1.out_features == config["model_args"]["hidden"][0]
    for target in ("onnx", "torch-export"):
        assert "verified in" in export(pruned.folder, to=target, out=tmp_path / target).check
    kept = sum(
        len(module.tenths) for module in backbone_of_file(pruned.folder / "gates").modules() if isinstance(module, Gate)
    )
    widths = config["model_args"]
    values = [heads * each for heads, each in zip(widths["heads"], widths["values"], strict=True)]
    assert (
        abs(sum(values) + sum(map(sum, (widths[k] for k in ("attn_inputs", "mlp_inputs", "hidden")))) - kept / 2) <= 4
    )


@pytest.mark.slow
def test_a_pruning_that_was_killed_goes_on_exactly(pruned: Pruned, pictures: Path, tmp_path: Path) -> None:
    """Killed in the training of gates, stopped in recovery: the same weights to the bit; another share is refused."""
    sets = [word for text in SETS for word in ("--set", text)]
    argv = ["compress", "prune", TEACHER, str(pictures / "train"), "--out", str(tmp_path / "out"), *sets]
    assert finish(argv, tmp_path / "said", Trap(signal.SIGKILL, 6)) == -signal.SIGKILL
    assert not (tmp_path / "out" / "pruned").exists()
    assert main([*argv, "--resume", "--keep", "0.6"]) == 2
    assert finish([*argv, "--resume"], tmp_path / "said", Trap(signal.SIGTERM, 5)) == 143
    assert "go on with: ssl-vit compress prune " in (tmp_path / "said").read_text()
    assert finish([*argv, "--resume"], tmp_path / "said") == 0
    ours, whole = (out / "export" / "model.safetensors" for out in (tmp_path / "out", pruned.folder))
    assert ours.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("keep", ["0", "1", "1.5", "-1", "half", "nan"])
def test_a_share_that_is_none_is_refused(keep: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "prune", TEACHER, str(tmp_path), f"--keep={keep}", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"{keep}: expected a share above 0 and below 1" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["resnet18", "gmlp_s16_224"])
def test_a_network_that_is_no_plain_vit_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: can't be pruned, as it is no plain ViT") as refused:
        prunable(create_backbone(name), 1e-4)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sets": ("method.name=dino",)}, "pruning sets method.name itself"),
        ({"data": "nowhere"}, "nowhere: no such folder"),
        ({"sets": ("train.epoch=3",)}, "train.epochs"),
    ],
)
def test_mistakes_are_found_first(changes: dict[str, Any], says: str, tmp_path: Path, pictures: Path) -> None:
    given: dict[str, Any] = {"data": str(pictures / "train"), "sets": ()} | changes
    with pytest.raises(UserError, match=says):
        prune(TEACHER, given["data"], tmp_path / "out", sets=given["sets"])
    assert not (tmp_path / "out").exists()


def test_zeros_are_cut_off_and_nothing_changes(tmp_path: Path) -> None:
    """Heads and units that nothing reads are gone; a network that has none is refused."""
    whole = network()
    hand_over(whole, tmp_path / "whole", "timm", {})
    with pytest.raises(UserError, match="no head and no hidden unit of it is 0"):
        shrink(tmp_path / "whole", tmp_path / "no")
    with torch.no_grad():
        whole.model.blocks[0].attn.proj.weight[:, 8:16] = 0
        whole.model.blocks[1].mlp.fc2.weight[:, ::2] = 0
    hand_over(whole, tmp_path / "sparse", "timm", {})
    done = shrink(tmp_path / "sparse", tmp_path / "small")
    small, images = backbone_of_file(done.folder), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(small.eval()(images).pooled, whole(images).pooled, rtol=1e-4, atol=1e-5)
    args = small.architecture()["model_args"]
    assert (args["heads"], args["hidden"]) == ((2, 3, 3), (96, 48, 96))
