"""Parts of a backbone computed again in backward: the same numbers to the bit, from less that is kept."""

from __future__ import annotations

import copy
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ssl_vit.backbones import backbone_info, create_backbone
from ssl_vit.backbones.timm_adapter import TimmBackbone
from ssl_vit.cli import main
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.methods import list_methods
from ssl_vit.methods.method import Method, Progress
from ssl_vit.run.prepare import build_method
from ssl_vit.training.cpu.bfloat16 import lean_bfloat16
from ssl_vit.training.memory import enough_memory
from ssl_vit.training.recompute import recompute
from tests.families import cheapest
from tests.runs import Trap, command, finish, losses, weights
from tests.test_families_train import resolved

QUICK = {"vision_transformer", "swin_transformer", "resnet", "convnext", "volo"}


class Pass(NamedTuple):
    loss: Tensor
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    kept: int  # bytes for backward, without weights


def small(family: str) -> TimmBackbone:
    name, kwargs = cheapest()[family]
    torch.manual_seed(0)
    info = backbone_info(name, image_size=kwargs.get("image_size"), model_args=kwargs.get("model_args", {}))
    return create_backbone(name, drop_path=0.2 if info.drops_paths else 0.0, **kwargs).train()


def passed(backbone: TimmBackbone, sizes: list[int], bfloat16: bool) -> Pass:
    """Four images of each size, forward and backward."""
    torch.manual_seed(1)
    images = [torch.randn(4, 3, size, size) for size in sizes]
    own, kept = {p.untyped_storage().data_ptr() for p in backbone.parameters()}, {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        lean_bfloat16(torch.device("cpu")),
    ):
        seen = [backbone(views) for views in images]
        loss = torch.stack([map_.float().square().mean() for pair in seen for map_ in pair]).sum()
    loss.backward()
    gradients = {name: p.grad for name, p in backbone.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    return Pass(loss.detach(), gradients, buffers, sum(size for place, size in kept.items() if place not in own))


def differences(a: dict[str, Tensor | None], b: dict[str, Tensor | None]) -> list[str]:
    assert a.keys() == b.keys()
    return [
        name
        for name, x in a.items()
        if (x is None) != (b[name] is None) or (x is not None and not torch.equal(x, b[name]))  # type: ignore[arg-type]  # both are there
    ]


@pytest.mark.parametrize("bfloat16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[] if f in QUICK else [pytest.mark.slow]) for f in sorted(cheapest())]
)
def test_the_same_to_the_bit_from_less(family: str, bfloat16: bool) -> None:
    """With drop path, batch norm, attention that is replaced, and crops of two sizes before one backward."""
    plain = small(family)
    lean, size, info = copy.deepcopy(plain), cheapest()[family][1].get("image_size", plain.info.size[0]), plain.info
    recompute(nn.ModuleDict({"student": lean}), size, lean=bfloat16)
    sizes = [size, size + info.multiple] if info.any_size else [size]
    before, after = passed(plain, sizes, bfloat16), passed(lean, sizes, bfloat16)
    assert torch.equal(before.loss, after.loss)
    assert differences(before.gradients, after.gradients) == []
    assert differences(dict(before.buffers), dict(after.buffers)) == []
    assert after.kept < 0.8 * before.kept
    assert plain.state_dict().keys() == lean.state_dict().keys()


def test_twelve_blocks_keep_what_they_are_given() -> None:
    """The inputs of twelve blocks and of what follows them, each 4 · 65 · 192 numbers, and few others."""
    torch.manual_seed(0)
    backbone = create_backbone("vit_tiny_patch16_224", image_size=128).train()
    names = recompute(nn.ModuleDict({"student": backbone}), 128)
    assert names == [f"student.model.blocks.{i}" for i in range(12)]
    found = passed(backbone, [128], False)
    assert found.kept < 20 * 4 * (4 * 65 * 192)


def test_timm_says_which_parts_where_its_numbers_are_the_same() -> None:
    """Not where running statistics would move twice, nor where a CPU computes in ways of our own."""
    assert recompute(nn.ModuleDict({"student": small("swin_transformer")}), 64, lean=False) == ["student.model"]
    assert recompute(nn.ModuleDict({"student": small("resnet")}), 64, lean=False) != ["student.model"]
    ours = recompute(nn.ModuleDict({"student": small("swin_transformer")}), 64, lean=True)
    assert len(ours) > 1


def test_a_copy_computes_with_its_own_weights() -> None:
    backbone = small("vision_transformer")
    recompute(nn.ModuleDict({"student": backbone}), 32)
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    images = torch.randn(2, 3, 32, 32)
    assert other(images).pooled.abs().max() == 0
    assert backbone(images).pooled.abs().max() > 0


@pytest.mark.parametrize("name", [name for name in list_methods() if name != "detreg"])
def test_a_step_of_every_method_is_the_same(name: str) -> None:
    """Also those that hide or leave out patches, by hooks whose pass is over in backward."""
    config, found = resolved(name, "vision_transformer"), []
    for on in (False, True):
        torch.manual_seed(0)
        train = config.train.model_copy(update={"checkpoint_activations": on})
        method: Method = build_method(config.model_copy(update={"train": train}))
        images = [torch.randn(view.count * 4, 3, view.size, view.size) for view in method.views().views]
        step = method(images, Progress(5, 10, 5))
        step.loss.backward()
        recomputed = [m for m in method.modules() if "forward" in vars(m) or vars(m).get("grad_checkpointing")]
        assert bool(recomputed) == on
        assert all(any(p.requires_grad for p in m.parameters()) for m in recomputed), "the student alone"
        found.append((step.loss.detach(), {key: p.grad for key, p in method.named_parameters()}))
    assert torch.equal(found[0][0], found[1][0])
    assert differences(found[0][1], found[1][1]) == []


def test_nothing_to_compute_again_is_said() -> None:
    backbone = small("vision_transformer")
    backbone.model.blocks = nn.Identity()
    with pytest.raises(UserError, match=r"train.checkpoint_activations: test_vit has no parts"):
        recompute(nn.ModuleDict({"student": backbone}), 32)


def test_a_frozen_backbone_is_refused() -> None:
    config = resolved("detreg", "vision_transformer", **{"train.checkpoint_activations": True})
    with pytest.raises(UserError, match=r"^train\.checkpoint_activations: the method does not train the backbone"):
        build_method(config)


@pytest.mark.fault
def test_a_run_is_the_same_and_goes_on_with_it_or_without(pictures: Path, whole_run: Path, tmp_path: Path) -> None:
    """Killed with it and resumed without; memory is where a run may differ from the one that it goes on with."""
    out, said = tmp_path / "run", tmp_path / "said"
    begin = command(pictures / "train", out, "--val", str(pictures / "val"), train__checkpoint_activations=True)
    assert finish(begin, said, Trap(signal.SIGKILL, step=7)) == -signal.SIGKILL, said.read_text()
    on = ["pretrain", str(pictures / "train"), "--out", str(out), "--resume"]
    assert finish([*on, "--set", "train.checkpoint_activations=false"], said) == 0, said.read_text()
    assert losses(out) == losses(whole_run)
    assert weights(out) == weights(whole_run)


def test_too_little_memory_is_one_line(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("ssl_vit.training.step.to_views", full)  # as a GPU without memory does
    monkeypatch.setattr("ssl_vit.device.name", lambda: "NVIDIA T4")
    assert main(command(pictures / "train", tmp_path / "run", data__workers=0)) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    said = (
        "ssl-vit: error: the memory of the GPU (NVIDIA T4) is too small for this step: 8 images a device, of each 1 of "
        "32 + 1 of 32 + 2 of 16 pixels, for vit_tiny_patch16_224 in 32-true; give less to do: "
    )
    assert last.startswith(said)
    assert "--set train.checkpoint_activations=true" in last
    assert "--set train.accumulate=2 (the same batch in more parts), --batch-size 4 or" in last
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_cpu_without_memory_is_one_line_too() -> None:
    config = resolved("dino", "vision_transformer", **{"train.checkpoint_activations": True})
    for fill in (lambda: torch.empty(2**60, dtype=torch.uint8), lambda: bytearray(2**60)):
        said = r"memory of this machine \([\d.]+ GB, of which this process had"
        with pytest.raises(RunFailed, match=said) as failed, enough_memory(config):
            fill()
        assert "checkpoint_activations" not in str(failed.value), "that is so already"
