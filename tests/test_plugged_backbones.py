"""The open door for networks: by timm's conventions, of any making, and given in Python; all the way to an export."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import ssl_vit
from ssl_vit import plugins
from ssl_vit.backbones import as_backbone, backbone_info, backbone_name, create_backbone, list_backbones
from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.cli import main
from ssl_vit.errors import UserError
from ssl_vit.eval.readout import Readout, read_out
from ssl_vit.registry import BACKBONES
from tests.plugged import METHOD, MISDECLARED, NET, TIMM_NET, net, package
from tests.runs import Trap, finish
from tests.test_plugins import error_of, light, own_plugins, write

__all__ = ["own_plugins"]

NETS = {"toy_net": NET, "toy_depthwise": TIMM_NET}
CHOSEN = {
    "train.batch_size": 8,
    "train.epochs": 4,
    "train.precision": "32-true",
    "train.checkpoint_every": 5,
    "data.workers": 0,
    "backbone.image_size": 32,
    "optim.lr": 1e-3,
}


def pretrain(pictures: Path, out: Path, *more: str) -> list[str]:
    sets = [word for key, value in CHOSEN.items() for word in ("--set", f"{key}={value}")]
    return ["pretrain", str(pictures / "train"), "--out", str(out), *sets, *more]


# --- all the way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_a_strangers_method_and_network_go_all_the_way(name, pictures, tmp_path, capsys):
    method, network = write(tmp_path / f"varcov_{name}.py", METHOD), write(tmp_path / f"{name}.py", NETS[name])
    out, said = tmp_path / "run", tmp_path / "said"
    both = ["--plugin", method, "--plugin", network]
    begin = pretrain(pictures, out, "--method", "varcov", "--backbone", name, *both)
    assert finish(begin, said, Trap(signal.SIGTERM, step=7)) == 143, said.read_text()
    told = said.read_text()
    assert f"plugin {network} (sha256 " in told
    assert f"): backbone {name}\n" in told
    assert f"--resume --plugin {method} --plugin {network}" in told  # what to type to go on
    assert "nobody says what kind" not in told
    resume = ["pretrain", str(pictures / "train"), "--out", str(out), "--resume"]
    assert main(resume) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(f"add --plugin {file} " in line for file, line in zip((method, network), lines, strict=True))
    assert main([*resume, *both]) == 0
    assert f"verified: loaded by {'the plugin toy_net.py' if name == 'toy_net' else 'timm'}" in capsys.readouterr().out

    scored = ["--train", str(pictures / "train"), "--val", str(pictures / "val")]
    assert main(["eval", "knn", str(out), *scored, "--plugin", network]) == 0
    assert json.loads(capsys.readouterr().out)["protocol"]["encoder"] == name
    embed = ["embed", str(out), str(pictures / "val"), "--out", str(tmp_path / "f.npz")]
    for command in (["eval", "knn", str(out), *scored], ["export", str(out)], embed):
        refused = error_of(capsys, *command)
        assert f"holds the backbone {name!r} of the plugin {name}.py" in refused
        assert f"add --plugin {name}.py" in refused
    assert main([*embed, "--plugin", network]) == 0

    for target in ("timm", "safetensors"):
        capsys.readouterr()
        assert main(["export", str(out), "--to", target, "--out", str(tmp_path / target), "--plugin", network]) == 0
        printed = capsys.readouterr().out
        assert "outputs within 0 of the run's" in printed
        assert f"import ssl_vit; ssl_vit.load_plugin('{network}')" in printed
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["plugin"]["file"] == f"{name}.py"
    assert str(tmp_path) not in json.dumps(config)
    keys = set(load_file(tmp_path / "timm" / "model.safetensors"))
    assert {"stem.weight", "mix.weight"} <= keys  # her own names
    further = pretrain(pictures, tmp_path / "next", "--weights", str(out), "--epochs", "1")
    capsys.readouterr()
    assert f"of the plugin {name}.py" in error_of(capsys, *further)
    assert main([*further, "--plugin", network]) == 0


@pytest.mark.parametrize("change", ["\n# a comment\n", "torch.relu"])
def test_a_plugin_that_has_changed_is_found_out_by_what_it_computes(change, tmp_path, caplog):
    file = Path(write(tmp_path / "toy_net.py", NET))
    with plugins.withdrawn_after():
        plugins.load_plugin(str(file))
        from ssl_vit.export.api import hand_over

        made = hand_over(create_backbone("toy_net"), tmp_path / "export", "timm", {})
    assert (made.consumer, made.max_difference) == ("the plugin toy_net.py", 0.0)
    write(file, NET.replace("torch.relu", "torch.tanh") if change == "torch.relu" else NET + change)
    plugins.load_plugin(str(file))
    with caplog.at_level(logging.WARNING, "ssl_vit"):
        if change == "torch.relu":
            with pytest.raises(UserError, match="toy_net gives other outputs than when the weights were written"):
                backbone_of_file(tmp_path / "export")
        else:
            assert backbone_of_file(tmp_path / "export").info.name == "toy_net"
            assert "toy_net gives the outputs that it gave then" in caplog.messages[-1]
    assert f"the plugin {file} has changed since the weights were written" in caplog.messages[0]


# --- the contract ---------------------------------------------------------------------------------------------------


def test_any_module_fulfils_the_contract(tmp_path):
    plugins.load_plugin(write(tmp_path / "toy_net.py", NET))
    backbone = create_backbone("toy_net", image_size=48, model_args={"width": 8}, masked=True).eval()
    info = backbone.info
    assert (info.kind, info.dim, info.patch_dim, info.stages) == ("convolutional", 24, 24, ((24, 8),))
    assert (info.size, info.grid, info.any_size, info.multiple, info.patch) == ((48, 48), (6, 6), True, 1, None)
    assert (info.drops_paths, info.drops_patches, info.family) == (False, False, "toy_net")
    assert info == backbone_info("toy_net", image_size=48, model_args={"width": 8})
    assert info.parameters == sum(weight.numel() for weight in backbone.model.parameters())
    images = torch.randn(2, 3, 48, 48)
    features = backbone(images)
    assert torch.equal(features.patches, backbone.model(images))
    assert torch.equal(features.pooled, features.patches.mean((-2, -1)))
    assert torch.equal(backbone.pyramid(images)[0], features.patches)
    hidden = torch.zeros(2, 6, 6, dtype=torch.bool)
    assert torch.equal(backbone(images, hidden).patches, features.patches)
    hidden[:, 0, 0] = True
    changed = (backbone(images, hidden).patches != features.patches).any(1)
    assert changed[:, 0, 0].all()
    assert not changed[:, 3:, 3:].any()  # only where the colour can be seen from
    with pytest.raises(ValueError, match="no mask token"):
        create_backbone("toy_net")(images, hidden)
    with pytest.raises(ValueError, match="can't leave patches out"):
        backbone.visible(images, torch.zeros(2, 3, dtype=torch.long))
    [row] = list_backbones("toy_n*")
    assert (row.name, row.family, row.kind, row.info is not None) == ("toy_net", "toy_net", "convolutional", True)


def test_tokens_and_stages_are_read_as_declared(tmp_path):
    tokens = net(
        'kind="mlp", dim=16, stride=4, gives="tokens", prefix=1',
        "t = x.flatten(2).mT; return torch.cat([t[:, :1], t], 1)",
    )
    stages = net('kind="mlp", dim=24, stride=8, stages=((16, 4), (24, 8))', "return x, self.fc(x)")
    plugins.load_plugin(write(tmp_path / "tokens.py", tokens.replace("toy_net", "toy_tokens")))
    plugins.load_plugin(write(tmp_path / "stages.py", stages.replace("toy_net", "toy_stages")))
    images = torch.randn(2, 3, 32, 32)
    backbone = create_backbone("toy_tokens", image_size=32).eval()
    assert torch.equal(backbone(images).patches, backbone.model.stem(images))
    backbone = create_backbone("toy_stages", image_size=32).eval()
    first, last = backbone.pyramid(images)
    assert torch.equal(first, backbone.model.stem(images))
    assert torch.equal(last, backbone(images).patches)
    assert [tuple(stage) for stage in backbone.info.stages] == [(16, 4), (24, 8)]
    readout = Readout(32, (0.5,) * 3, (0.5,) * 3, layers=(-2, -1), pooling="mean")
    expected = torch.cat([first.mean((-2, -1)), last.mean((-2, -1))], 1)
    assert torch.allclose(read_out(backbone, images, readout), expected)


def test_a_network_that_only_real_tensors_go_through_and_of_one_size(tmp_path):
    """It looks at a value, which a tensor without memory doesn't have, and has a table for 64 pixels."""
    body = "x = self.fc(x); return x + self.table if float(x.sum()) > -1e9 else x"
    text = net('kind="convolutional", dim=24, stride=8, image_size=64', body)
    text = text.replace(
        "        self.stem", "        self.table = nn.Parameter(torch.zeros(24, 8, 8))\n        self.stem"
    )
    plugins.load_plugin(write(tmp_path / "real.py", text.replace("toy_net", "toy_real")))
    state = torch.get_rng_state()
    info = backbone_info("toy_real")
    assert torch.equal(torch.get_rng_state(), state)
    assert (info.size, info.any_size) == ((64, 64), False)
    with pytest.raises(UserError, match="toy_real' can't take images of 96×96 pixels"):
        backbone_info("toy_real", image_size=96)


def test_arguments_of_a_network_are_checked_by_name(tmp_path):
    text = NET.replace("width: int = 16", "width: int = 16, img_size: int = 64, drop_path_rate: float = 0.0")
    text = text.replace("super().__init__()", "super().__init__(); self.given = img_size, drop_path_rate")
    plugins.load_plugin(write(tmp_path / "args.py", text.replace("toy_net", "toy_args")))
    backbone = create_backbone("toy_args", image_size=32, drop_path=0.1)
    assert (backbone.model.given, backbone.info.drops_paths) == ((32, 0.1), True)
    for args, expected in (
        ({"widht": 8}, "model_args.widht: toy_args has no such argument; did you mean width?"),
        ({"img_size": 8}, "model_args.img_size: not for the user to set; use image_size"),
        ({"width": "x"}, r"can't be built with width=x, img_size=64 \(TypeError"),
    ):
        with pytest.raises(UserError, match=expected):
            create_backbone("toy_args", model_args=args)


# --- kinds ----------------------------------------------------------------------------------------------------------


def test_a_family_declares_its_kind_and_a_guess_is_said(tmp_path, caplog):
    plugins.load_plugin(write(tmp_path / "toy_depthwise.py", TIMM_NET))
    undeclared = TIMM_NET.replace("toy_depthwise", "toy_guessed").replace('declare_kind(__name__, "convolutional")', "")
    plugins.load_plugin(write(tmp_path / "toy_guessed.py", undeclared))
    with caplog.at_level(logging.WARNING, "ssl_vit"):
        assert backbone_info("toy_depthwise").kind == "convolutional"
        assert caplog.messages == []
        assert backbone_info("toy_guessed").kind == "mlp"
    assert caplog.messages[0].startswith(
        "toy_guessed: nobody says what kind of network this is; by its layers it is taken for mlp"
    )
    assert [row.kind for row in list_backbones("toy_depthwise")] == ["convolutional"]
    backbone = create_backbone("toy_depthwise", drop_path=0.1)
    assert backbone.architecture()["plugin"]["file"] == "toy_depthwise.py"
    assert "plugin" not in create_backbone("cswin_tiny_224").architecture()


# --- in Python ------------------------------------------------------------------------------------------------------


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, stride=8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images)


def test_a_module_of_ones_own_is_pretrained_from_its_weights(pictures, tmp_path):
    module = Bare()
    backbone = as_backbone(module, kind="convolutional", dim=8, stride=8, image_size=32)
    assert backbone_name(backbone) == "Bare"
    settings = CHOSEN | {"train.epochs": 1, "optim.lr": 1e-30}
    plugin = write(tmp_path / "varcov_in_python.py", METHOD)
    plugins.load_plugin(plugin)
    from ssl_vit.methods import method_class

    done = ssl_vit.pretrain(
        pictures / "train",
        tmp_path / "run",
        settings,
        method=method_class("varcov"),
        backbone=backbone,
        plugins=[plugin],
    )
    assert done.exported.consumer == "a copy of the module that was given"
    assert "ssl_vit.as_backbone(module, …, name='Bare')" in done.exported.snippet
    exported = load_file(done.exported.folder / "model.safetensors")
    assert exported.keys() == module.state_dict().keys()
    assert torch.allclose(exported["conv.weight"], module.conv.weight, atol=1e-6)
    assert backbone_of_file(tmp_path / "run" / "export").info.name == "Bare"
    BACKBONES.entries.pop("Bare")
    with pytest.raises(
        UserError, match="holds the backbone 'Bare', a module that was given in Python; give it again by"
    ):
        backbone_of_file(tmp_path / "run" / "export")


def test_what_is_given_in_python_is_checked_at_once(tmp_path):
    with pytest.raises(UserError, match=r"'Bare' is declared to give \[2, 9, 28, 28\].* and gives \[2, 8, 28, 28\]"):
        as_backbone(Bare(), kind="convolutional", dim=9, stride=8)
    with pytest.raises(UserError, match=r"backbone: got a Bare; expected a name, or ssl_vit.as_backbone\(module"):
        ssl_vit.pretrain(tmp_path, tmp_path / "run", backbone=Bare())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Bare is not registered; decorate it with"):
        ssl_vit.pretrain(tmp_path, tmp_path / "run", method=Bare)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a configuration is whole"):
        ssl_vit.pretrain(ssl_vit.load_config(flags={"data.path": "x"}), tmp_path / "run", method="dino")


# --- by entry point, and mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != min(NETS) else []) for name in NETS]
)
def test_networks_of_installed_packages_are_built_when_their_name_is_used(name, tmp_path):
    points = {"ssl_vit.backbones": {name: f"strange_{name}.nets"}}
    site = package(tmp_path, f"strange_{name}", points, {"nets.py": NETS[name]})
    code, said, _ = light("list", "backbones", name, path=site)
    assert code == 0, said
    assert "convolutional" in said
    assert "64x64 or others" in said
    code, said, heavy = light("pretrain", "--help", path=site)
    assert (code, heavy) == (0, set())


def test_two_files_with_one_name_in_timm_are_both_named_and_one_command_leaves_nothing_behind(tmp_path, capsys):
    first, second = (write(tmp_path / f"{name}.py", TIMM_NET) for name in ("toy_first", "toy_second"))
    said = error_of(capsys, "list", "backbones", "toy_d*", "--plugin", first, "--plugin", second)
    assert said.startswith(f"the backbone 'toy_depthwise' is taken: {second} and {first} register it")
    for file in (first, first):  # imported once, in use twice
        assert main(["list", "backbones", "toy_depthwise", "--plugin", file]) == 0
        assert "toy_first" in capsys.readouterr().out
    assert "no backbone has such a name" in error_of(capsys, "list", "backbones", "toy_depthwise")


def test_a_package_that_lacks_the_network_it_announces(tmp_path):
    site = package(tmp_path, "strange", {"ssl_vit.backbones": {"a_net": "strange.nets"}}, {"nets.py": ""})
    code, said, _ = light("list", "backbones", "a_net", path=site)
    assert code == 2
    assert (
        "the package strange 1.5 (entry point strange.nets) announces the backbone 'a_net' and does not register"
        in said
    )


@pytest.mark.parametrize(("text", "expected"), MISDECLARED.values(), ids=MISDECLARED)
def test_a_network_that_is_not_what_it_says_is_refused_before_data_is_read(text, expected, tmp_path, pictures, capsys):
    file = write(tmp_path / f"net_{abs(hash(expected))}.py", text)
    name = "resnet18" if "resnet18" in text else "toy_net"
    out = tmp_path / "run"
    argv = ["pretrain", str(pictures / "train"), "--out", str(out), "--backbone", name, "--plugin", file]
    said = error_of(capsys, *argv)
    assert expected.format(file=file) in said
    assert not out.exists()
    assert timm.models.model_entrypoint("resnet18").__module__ == "timm.models.resnet"
