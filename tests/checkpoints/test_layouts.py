"""Every layout, from the names that the official code writes, into our backbone: strictly, and each to its place."""

import json
import re
from pathlib import Path

import pytest
import torch
import torchvision
from timm.models import create_model, model_entrypoint

from ssl_vit.backbones.registry import create_backbone, list_backbones
from ssl_vit.backbones.shapes import ShapesAlone
from ssl_vit.checkpoints.architectures import architecture_of
from ssl_vit.checkpoints.inspection import inspect
from ssl_vit.checkpoints.load import backbone_of_file, load_weights
from ssl_vit.config import load_config
from ssl_vit.errors import UserError
from ssl_vit.run.facts import Facts
from ssl_vit.run.plan import resolve_config, start_weights
from tests.checkpoints.files import dino_head, filled, number, official, save, shapes_of, trainer
from tests.golden.names import name_of
from tests.golden.verify import compare, image_input, official_weights

GOLDEN = Path(__file__).parents[1] / "golden"
list_backbones("vit_tiny_patch16_224")  # our families are in timm's registry from here on

VIT = ("vit_tiny_patch16_224", {"depth": 2})
SWIN = ("swin_tiny_patch4_window7_224", {"depths": (2, 2, 2, 2)})
BEIT = ("beit_base_patch16_224", {"depth": 2})
RESNET = ("resnet50", {"layers": (1, 1, 1, 1)})
DINOV2 = ("vit_small_patch14_dinov2", {"depth": 4})


def vit_shapes():
    return official("dino_vit")


def resnet_shapes():
    return shapes_of(create_backbone(RESNET[0], model_args=RESNET[1]))


def dino():
    student = filled(vit_shapes(), "module.backbone.") | dino_head("module.", 192)
    teacher = filled(vit_shapes(), "backbone.") | dino_head("", 192)
    return trainer(student=student, teacher=teacher, dino_loss={"center": torch.zeros(1, 65536)})


def esvit():
    teacher = filled(official("esvit_swin")) | dino_head("", 768) | dino_head("", 768, "head_dense")
    return trainer(student=filled(official("esvit_swin"), "module."), teacher=teacher, dino_loss={})


def moby():
    return trainer(
        model=filled(official("moby")), lr_scheduler={}, max_accuracy=0.0, config={"DATA": {"BATCH_SIZE": 64}}
    )


def beit_pretrain():
    return trainer(model=filled(official("beit_pretrain")), scaler={})


def beit_finetune():
    return trainer(model=filled(official("beit_finetune")))


def detreg():
    return trainer(model=filled(official("detreg")), lr_scheduler={})


def moco_v3():
    return {"epoch": 1, "arch": "vit_tiny", "state_dict": filled(official("moco_v3")), "optimizer": {}}


def mae():
    return trainer(model=filled(official("mae")), scaler={})


def ibot():
    sides = {side: filled(shapes) for side, shapes in official("ibot").items()}
    return trainer(**sides, dino_loss=None, ibot_loss={"center2": torch.zeros(1, 1, 8192)}, fp16_scaler={})


def dinov2_chunks():
    """As in training: blocks in two chunks, of which the first has one."""
    chunked = {re.sub(r"^blocks\.(\d)", r"blocks.1.\1", key): shape for key, shape in official("dinov2").items()}
    chunked = {key.replace("blocks.1.0.", "blocks.0.0."): shape for key, shape in chunked.items()}
    heads = {}
    for head in ("dino_head", "ibot_head"):
        for index, (given, got) in {0: (384, 2048), 2: (2048, 2048), 4: (2048, 384)}.items():
            heads |= {f"{head}.mlp.{index}.weight": [got, given], f"{head}.mlp.{index}.bias": [got]}
        heads |= {f"{head}.last_layer.weight_g": [131072, 1], f"{head}.last_layer.weight_v": [131072, 384]}
    return {"teacher": filled(chunked, "backbone.") | filled(heads)}


def dinov2():
    return filled(official("dinov2"))


def resnet_with_head():
    return filled(resnet_shapes() | {"fc.weight": [1000, 2048], "fc.bias": [1000]})


def lightning():
    return {"state_dict": filled(vit_shapes(), "model."), "pytorch-lightning_version": "2.6.0", "epoch": 1}


def lightly(*backbones, **others):
    """A module of lightly's examples around a masked ViT: its mask token lies beside the ViT, not in it."""
    state = {}
    for name in backbones:
        state |= filled(vit_shapes(), f"{name}.vit.") | filled({f"{name}.mask_token": [1, 1, 192]})
    others = {key.replace("__", "."): shape for key, shape in others.items()}
    return {"state_dict": state | filled(others), "pytorch-lightning_version": "2.0"}


def lightly_ibot():
    return lightly("student_backbone", "teacher_backbone", student_head__layers__0__weight=[2048, 192])


def lightly_dino():
    """Of the benchmarks, where the teacher is called backbone."""
    return lightly("backbone", "student_backbone", student_projection_head__layers__0__weight=[2048, 192])


def lightly_mae():
    return lightly("backbone", decoder__decoder_embed__weight=[512, 192], decoder__mask_token=[1, 1, 512])


SEQUENCE = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def lightly_resnet():
    state = {key.replace(name := key.split(".")[0], SEQUENCE[name], 1): s for key, s in resnet_shapes().items()}
    heads = {"projection_head_global.layers.0.weight": [512, 2048], "backbone_momentum.0.weight": [64, 3, 7, 7]}
    return {"state_dict": filled(state, "backbone.") | filled(heads), "pytorch-lightning_version": "2.0"}


def solo_learn():
    """BYOL's module: projectors are nn.Sequential of linear, batch norm, ReLU, linear."""
    state = filled(resnet_shapes(), "backbone.") | filled(resnet_shapes(), "momentum_backbone.")
    heads = {"classifier.weight": [10, 2048], "classifier.bias": [10]}
    for name, first in (("projector", 2048), ("momentum_projector", 2048), ("predictor", 256)):
        heads |= {f"{name}.0.weight": [4096, first], f"{name}.0.bias": [4096], f"{name}.3.weight": [256, 4096]}
        heads |= {f"{name}.1.{kind}": [4096] for kind in ("weight", "bias", "running_mean", "running_var")}
    return {"state_dict": state | filled(heads), "pytorch-lightning_version": "1.9"}


def torchvision_vit():
    with torch.device("meta"), ShapesAlone():
        model = torchvision.models.VisionTransformer(224, 16, 2, 3, 192, 768)
    return filled({key: list(value.shape) for key, value in model.state_dict().items()})


def transformers_vit():
    return filled(official("transformers_vit"))


def mmdetection():
    heads = {"neck.lateral_convs.0.conv.weight": [256, 256, 1, 1], "rpn_head.rpn_conv.weight": [256, 256, 3, 3]}
    return {"meta": {"epoch": 1}, "state_dict": filled(resnet_shapes(), "backbone.") | filled(heads)}


def same(key):
    return key


def swin_name(key):
    return re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", key)


def beit_pretrain_name(key):
    key = key.replace("fc_norm.", "norm.")
    return "rel_pos_bias.relative_position_bias_table" if "bias_table" in key else key


def chunk_name(key):
    key = re.sub(r"^blocks\.(\d)", r"blocks.1.\1", key).replace("blocks.1.0.", "blocks.0.0.")
    return f"backbone.{key}"


def sequence_name(key):
    name = key.split(".")[0]
    return f"backbone.{key.replace(name, SEQUENCE[name], 1)}"


def torchvision_vit_name(key):
    pieces = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding", "patch_embed.proj": "conv_proj"}
    pieces |= {"blocks.": "encoder.layers.encoder_layer_", "norm1": "ln_1", "norm2": "ln_2", "mlp.fc1": "mlp.0"}
    pieces |= {"attn.qkv.": "self_attention.in_proj_", "attn.proj": "self_attention.out_proj", "mlp.fc2": "mlp.3"}
    for ours, theirs in pieces.items():
        key = key.replace(ours, theirs)
    return re.sub(r"^norm\.", "encoder.ln.", key)


def transformers_names(key):
    """Three for the one of query, key and value."""
    pieces = {"pos_embed": "embeddings.position_embeddings", "cls_token": "embeddings.cls_token"}
    pieces |= {"patch_embed.proj": "embeddings.patch_embeddings.projection", "blocks.": "encoder.layer."}
    pieces |= {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense"}
    pieces |= {"attn.proj": "attention.output.dense", "mlp.fc2": "output.dense"}
    for ours, theirs in pieces.items():
        key = key.replace(ours, theirs)
    key = "vit." + re.sub(r"^norm\.", "layernorm.", key)
    parts = ("query", "key", "value") if "attn.qkv" in key else ("",)
    return [key.replace("attn.qkv", f"attention.attention.{part}") for part in parts]


CASES = {  # what is written, its name, whose backbone it fits, and timm's name -> the one in the file, or several
    "dino": (dino, "DINO", VIT, "backbone.{}".format),
    "esvit": (esvit, "EsViT", SWIN, swin_name),
    "moby": (moby, "MoBY", SWIN, lambda key: f"encoder.{swin_name(key)}"),
    "beit_pretrain": (beit_pretrain, "BEiT, pretrained", BEIT, beit_pretrain_name),
    "beit_finetune": (beit_finetune, "BEiT", BEIT, same),
    "detreg": (detreg, "DETReg", RESNET, "backbone.0.body.{}".format),
    "moco_v3": (moco_v3, "MoCo v3", VIT, "module.base_encoder.{}".format),
    "mae": (mae, "MAE", VIT, same),
    "ibot": (ibot, "iBOT", VIT, "backbone.{}".format),
    "dinov2_chunks": (dinov2_chunks, "DINOv2", DINOV2, chunk_name),
    "dinov2": (dinov2, "DINOv2", DINOV2, same),
    "timm": (lambda: filled(vit_shapes()), "timm", VIT, same),
    "torchvision": (resnet_with_head, "torchvision or timm", RESNET, same),
    "lightning": (lightning, "Lightning", VIT, "model.{}".format),
    "lightly_ibot": (lightly_ibot, "lightly", VIT, "teacher_backbone.vit.{}".format),
    "lightly_dino": (lightly_dino, "lightly", VIT, "backbone.vit.{}".format),
    "lightly_mae": (lightly_mae, "lightly", VIT, "backbone.vit.{}".format),
    "lightly_resnet": (lightly_resnet, "lightly", RESNET, sequence_name),
    "solo_learn": (solo_learn, "solo-learn", RESNET, "backbone.{}".format),
    "mmdetection": (mmdetection, "MMPretrain or MMDetection", RESNET, "backbone.{}".format),
    "torchvision_vit": (torchvision_vit, "torchvision", VIT, torchvision_vit_name),
    "transformers": (transformers_vit, "transformers", VIT, transformers_names),
}
LEFT = {  # names that must be said to be no backbone
    "dino": "head.last_layer.weight_g",
    "esvit": "head_dense.mlp.0.weight",
    "moby": "predictor.linear_out.weight",
    "beit_pretrain": "lm_head.weight",
    "beit_finetune": "head.weight",
    "detreg": "transformer.level_embed",
    "moco_v3": "module.momentum_encoder.cls_token",
    "mae": "decoder_blocks.0.norm1.weight",
    "dinov2_chunks": "ibot_head.last_layer.weight_v",
    "dinov2": "mask_token",
    "lightly_dino": "student_backbone.vit.cls_token",
    "lightly_mae": "decoder.mask_token",
    "mmdetection": "neck.lateral_convs.0.conv.weight",
    "torchvision_vit": "heads.head.weight",
    "transformers": "classifier.weight",
    "torchvision": "fc.weight",
    "solo_learn": "classifier.weight",
}


@pytest.mark.parametrize("case", CASES)
def test_each_weight_gets_to_its_place(case, tmp_path):
    write, layout, (name, args), official_name = CASES[case]
    backbone = create_backbone(name, model_args=args)
    found = load_weights(backbone, save(tmp_path, write()))
    assert found.layout.split(" (")[0] == layout
    for key, value in backbone.model.state_dict().items():
        names = official_name(key) if case == "transformers" else [official_name(key)]
        for name, part in zip(names, value.chunk(len(names)) if value.ndim else [value], strict=True):
            expected = 0 if case == "detreg" and "num_batches" in key else number(name)
            wanted = torch.tensor(expected).to(part.dtype).expand(part.shape)
            torch.testing.assert_close(part, wanted, msg=key, rtol=1e-6, atol=0)
    if case in LEFT:
        assert LEFT[case] in found.left


ONE = {"vit": "blocks.1.mlp.fc2.bias", "beit": "blocks.1.mlp.fc2.bias", "swin": "layers.1.blocks.0.mlp.fc2.bias"}
ONE |= {"resnet50": "layer2.0.bn2.bias"}  # a weight of each kind that nothing resizes


@pytest.mark.fault
@pytest.mark.parametrize("case", CASES)
def test_a_wrong_one_is_refused_by_its_first_key_and_both_shapes(case, tmp_path):
    write, _, (name, args), official_name = CASES[case]
    document, key = write(), ONE[name.split("_")[0]]
    names = official_name(key)
    for state in (document, *(entry for entry in document.values() if isinstance(entry, dict))):
        if (file_name := names[0] if isinstance(names, list) else names) in state:
            state[file_name] = torch.zeros(7)
    backbone = create_backbone(name, model_args=args)
    expected = tuple(backbone.model.state_dict()[key].shape)
    with pytest.raises(UserError, match=re.escape(f"{key} is (7,), {name} expects {expected}")) as refusal:
        load_weights(backbone, save(tmp_path, document))
    assert "\n" not in str(refusal.value)


def test_a_whole_model_is_named(tmp_path):
    shapes = shapes_of(create_backbone("vit_tiny_patch16_224"))
    found = inspect(save(tmp_path, dino() | {"teacher": filled(shapes, "backbone.") | dino_head("", 192)}))
    assert str(found.architecture) == "vit_tiny_patch16_224"
    assert str(found).splitlines() == [
        f"{tmp_path / 'checkpoint.pth'}: DINO (arXiv 2104.14294), names of timm",
        "backbone: 150 tensors, 5,524,416 values",
        "fits: vit_tiny_patch16_224",
        "left over: head (3)",
        "images: normalised with mean 0.485,0.456,0.406 and deviation 0.229,0.224,0.225: ImageNet's, as DINO uses",
    ]


def test_positions_are_resized_and_it_is_said(tmp_path, caplog):
    backbone = create_backbone("vit_tiny_patch16_224", image_size=96, model_args={"depth": 2})
    state = filled(vit_shapes())
    columns = torch.arange(14.0).repeat(14)[:, None].expand(196, 192)  # position = its column, 0 to 13
    state["pos_embed"] = torch.cat([torch.zeros(1, 192), columns])[None].clone()
    with caplog.at_level("INFO", "ssl_vit"):
        load_weights(backbone, save(tmp_path, state))
    grid = backbone.model.pos_embed[0, 1:, 0].detach().unflatten(0, (6, 6))
    assert torch.allclose(grid, grid[:1])  # the same in every row
    steps = grid[0].diff()  # 14 columns in 6: 14 / 6 apart, but for the edges
    torch.testing.assert_close(steps[1:-1], torch.full((3,), 14 / 6), rtol=0.05, atol=0)
    assert "pos_embed resized from (1, 197, 192) to (1, 37, 192)" in caplog.text


def smallest_of_each_family():
    """The goldens of our own families, the smallest of each."""
    found = {}
    for file in sorted(GOLDEN.glob("*__*.json")):
        golden = json.loads(file.read_text())
        name = name_of(golden["case"], golden["variant"])
        if name is not None and not model_entrypoint(name).__module__.startswith("timm."):
            found.setdefault(golden["case"], []).append((golden["params"], name, golden))
    marks = {case: [pytest.mark.slow] for case in ("dvt_exit3", "focal", "vip")}  # seconds each
    return [
        pytest.param(*min(variants, key=lambda each: each[0])[1:], id=case, marks=marks.get(case, ()))
        for case, variants in found.items()
    ]


@pytest.mark.parametrize(("name", "golden"), smallest_of_each_family())
def test_official_files_of_our_own_families(name, golden, tmp_path):
    backbone = create_backbone(name)
    state = dict.fromkeys(golden["buffers"], torch.zeros(3, 3)) | filled(golden["keys"])
    found = load_weights(backbone, save(tmp_path, {"state_dict": state}))
    values = {number(key) for key in golden["keys"]}
    for key, value in backbone.model.named_parameters():
        assert any(abs(float(value.detach().flatten()[0]) - each) < 1e-6 for each in values), key
    assert all(key in golden["keys"] for key in found.left)


def test_an_official_file_gives_the_official_outputs(tmp_path):
    golden = json.loads((GOLDEN / "cswin__CSWin_64_12211_tiny_224.json").read_text())
    weights = official_weights(golden)
    backbone = create_backbone("cswin_tiny_224").eval()
    load_weights(backbone, save(tmp_path, weights))
    with torch.inference_mode():
        pooled = backbone(image_input(golden["input"])).pooled
    deviation = compare(pooled @ weights["head.weight"].T + weights["head.bias"], golden)
    assert deviation < 1e-4


@pytest.mark.parametrize(
    ("name", "window", "size", "said"),
    [
        ("swin_tiny_patch4_window7_224", 7, 224, ""),
        ("swin_tiny_patch4_window7_224", 14, 224, " with window_size=14, image_size=224"),  # EsViT's
        ("swin_tiny_patch4_window7_224", 6, 192, " with window_size=6, image_size=192"),  # SimMIM's
        pytest.param("swin_base_patch4_window12_384", 12, 384, "", marks=pytest.mark.slow),
        pytest.param(
            *("swin_base_patch4_window7_224", 24, 768, " with window_size=24, image_size=768"), marks=pytest.mark.slow
        ),
    ],
)
def test_the_windows_of_a_swin_are_those_of_its_file(name, window, size, said):
    with torch.device("meta"), ShapesAlone():
        state = create_model(name, num_classes=0, window_size=window, img_size=size).state_dict()
    found = architecture_of(state)
    assert str(found) == name + said
    backbone = create_backbone(found.name, image_size=found.size, model_args=found.model_args)
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in backbone.model.state_dict().items()
    }


def test_an_official_file_of_other_windows_gives_the_official_outputs(tmp_path, caplog):
    golden = json.loads((GOLDEN / "esvit__swin_small_patch4_window14_224.json").read_text())
    file = save(tmp_path, {"student": {}, "teacher": official_weights(golden), "dino_loss": {}})
    with caplog.at_level("INFO", "ssl_vit"):
        backbone = backbone_of_file(file).eval()
    assert "resized" not in caplog.text
    with torch.inference_mode():
        assert compare(backbone(image_input(golden["input"])).pooled, golden) < 1e-4
    config = load_config(flags={"data.path": "x", "backbone.weights": str(file)})
    grey = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    facts = Facts(images=300, side=256, colours=lambda: grey, gpus=0, cpus=2, bfloat16=False)
    chosen, decisions = resolve_config(config, facts, start_weights(config))
    assert chosen.backbone.args == {"window_size": 14}
    assert not any("resized" in decision.why for decision in decisions)
