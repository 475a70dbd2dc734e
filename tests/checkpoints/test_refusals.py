"""Files that are refused: in one line that says why, with nothing run and nothing changed."""

import os

import pytest
import torch
from safetensors.torch import save_file

from ssl_vit.backbones.registry import create_backbone
from ssl_vit.checkpoints.inspection import inspect
from ssl_vit.checkpoints.load import load_weights
from ssl_vit.cli import main
from ssl_vit.errors import UserError
from tests.checkpoints.files import filled, official, save, trainer


@pytest.fixture(scope="module")
def vit():
    return create_backbone("vit_tiny_patch16_224", model_args={"depth": 2})


@pytest.fixture
def unchanged(vit):
    before = {key: value.clone() for key, value in vit.model.state_dict().items()}
    yield
    for key, value in vit.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def refused(action, *needles):
    with pytest.raises(UserError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    for needle in needles:
        assert needle in text
    return text


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.fault
@pytest.mark.parametrize("forced", [False, True])
def test_a_malicious_pickle_is_not_run(tmp_path, vit, unchanged, monkeypatch, forced):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "run"
    file = save(tmp_path, trainer(model=filled(official("dino_vit")), extra=Malicious(marker)))
    for action in (lambda: inspect(file), lambda: load_weights(vit, file)):
        refused(action, "refused, nothing was run", "posix.mkdir", "state_dict alone")
    assert not marker.exists()
    torch.load(file, weights_only=False)  # the file is as bad as it is meant to be
    assert marker.exists()


@pytest.mark.fault
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("harm", ["truncated", "zeros", "empty", "text"])
def test_broken_files_are_named(tmp_path, vit, unchanged, harm, suffix):
    file = tmp_path / f"weights{suffix}"
    state = {key: value.contiguous() for key, value in filled(official("dino_vit")).items()}
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    data = file.read_bytes()
    file.write_bytes({"truncated": data[: len(data) // 2], "zeros": bytes(4096), "empty": b"", "text": b"hello"}[harm])
    for action in (lambda: inspect(file), lambda: load_weights(vit, file)):
        said = refused(action, str(file))
        assert (suffix, harm) != (".pth", "truncated") or "cut short or damaged; copy or download it again" in said


@pytest.mark.fault
@pytest.mark.parametrize(
    ("change", "needles"),
    [
        (lambda state: state.pop("blocks.1.attn.proj.bias"), ["blocks.1.attn.proj.bias (192,)", "missing"]),
        (lambda state: state.update({"blocks.1.extra": torch.zeros(5)}), ["blocks.1.extra (5,)", "not part of"]),
        (
            lambda state: state.update({"blocks.0.mlp.fc1.weight": torch.zeros(384, 192)}),
            ["blocks.0.mlp.fc1.weight is (384, 192)", "expects (768, 192)"],
        ),
        (
            lambda state: state.update({"patch_embed.proj.weight": torch.zeros(192, 3, 8, 8)}),
            ["patch_embed.proj.weight is (192, 3, 8, 8)", "expects (192, 3, 16, 16)"],
        ),
    ],
)
def test_the_first_key_that_does_not_fit_is_named_with_both_shapes(tmp_path, vit, unchanged, change, needles):
    state = filled(official("dino_vit"))
    change(state)
    refused(lambda: load_weights(vit, save(tmp_path, state)), *needles, "vit_tiny_patch16_224")


@pytest.mark.fault
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path, vit, unchanged, number):
    """One is enough: every feature would be none either, and a run that began so would blame its learning rate."""
    state = filled(official("dino_vit"))
    state["blocks.1.mlp.fc1.weight"].view(-1)[5] = number
    file = save(tmp_path, state)
    refused(lambda: load_weights(vit, file), "blocks.1.mlp.fc1.weight hold NaN or infinity", "take an earlier one")
    assert "not finite: 1 tensors, as blocks.1.mlp.fc1.weight" in str(inspect(file))


@pytest.mark.fault
@pytest.mark.parametrize("other", ["esvit_swin", "beit_pretrain", "detreg", "moby"])
def test_weights_of_another_model(tmp_path, vit, unchanged, other):
    refused(lambda: load_weights(vit, save(tmp_path, {"model": filled(official(other))})), "vit_tiny_patch16_224", "(")


@pytest.mark.fault
def test_what_holds_no_weights(tmp_path, vit):
    refused(lambda: inspect(save(tmp_path, {"epoch": 3})), "no weights found (it holds epoch)")
    refused(lambda: inspect(save(tmp_path, [torch.zeros(2)])), "holds a list")
    head = filled({"head.weight": [10, 192]})
    refused(lambda: inspect(save(tmp_path, head)), "no weight of a backbone")
    refused(lambda: inspect(tmp_path / "nowhere.pth"), "nowhere.pth: no such file")
    (tmp_path / "folder").mkdir()
    refused(lambda: inspect(tmp_path / "folder"), "neither model.safetensors nor")


def test_the_command_prints_what_it_is(tmp_path, capsys):
    file = save(tmp_path, trainer(model=filled(official("detreg"))))
    assert main(["inspect", str(file)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{file}: DETReg (arXiv 2106.04550), names of timm"
    assert "transformer (" in printed[3]
    assert main(["inspect", str(tmp_path / "none.pth")]) == 2
    assert "none.pth: no such file" in capsys.readouterr().err
