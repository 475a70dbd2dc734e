"""Supernets: every member is its part of the weights to the bit, drawn by the step alone, the published ones too."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.families import autoformer, glit
from ssl_vit.backbones.spaces import SPACES, Genes, Space, space_of
from ssl_vit.backbones.supernet import Entangled, entangle, extracted, filled, part
from ssl_vit.errors import UserError
from tests.golden import verify

GOLDEN = Path(verify.__file__).parent


def supernet(space: Space, size: int = 32, **args: Any) -> AdaptedBackbone:
    torch.manual_seed(0)
    largest = space.args(space.largest)
    return create_backbone(space.backbone, image_size=size, model_args=args | largest).eval()


def through(backbone: AdaptedBackbone, space: Space, genes: Genes, images: Tensor) -> tuple[Tensor, Tensor]:
    """What a supernet in training gives of a member."""
    entangled = Entangled(backbone, space, 0, 0.0)
    entangled.use(genes)
    found = entangled(images)
    return found.pooled, found.patches


@pytest.mark.parametrize("name", ["micro", "glit", pytest.param("tiny", marks=pytest.mark.slow)])
def test_a_slice_equals_the_network_alone_to_the_bit(name: str) -> None:
    space = space_of(name)
    whole, images = supernet(space), torch.randn(2, 3, 32, 32)
    for genes in (space.smallest, space.draw(random.Random(3))):
        alone = extracted(space, genes, whole).eval()
        pooled, patches = through(whole, space, genes, images)
        own = alone(images)
        width = int(genes[1])
        assert torch.equal(pooled[:, :width], own.pooled)
        assert torch.equal(patches[:, :width], own.patches)
        assert not pooled[:, width:].any()
        assert (alone.info.dim, alone.info.name) == (width, space.backbone)
        plain = timm.create_model(space.backbone, num_classes=0, img_size=32, **space.args(genes)).eval()
        plain.load_state_dict(alone.model.state_dict())
    largest = through(whole, space, space.largest, images)[0]
    assert torch.equal(largest, whole(images).pooled)


def test_gradients_reach_the_members_part_alone() -> None:
    space = space_of("micro")
    whole = supernet(space).train()
    genes = space.smallest
    through(whole, space, genes, torch.randn(2, 3, 32, 32))[0].square().sum().backward()
    weight = whole.model.blocks[0].mlp.fc1.weight.grad
    assert weight[:192, :96].any()
    assert not weight[192:].any()
    assert not weight[:, 96:].any()
    assert whole.model.blocks[3].mlp.fc1.weight.grad is None
    qkv = whole.model.blocks[0].attn.qkv.weight.grad.unflatten(0, (3, -1))
    assert not qkv[:, 64:].any()
    assert qkv[2, :64, :96].any()


def _put(space: Space, genes: Genes, whole: AdaptedBackbone, alone: dict[str, Tensor]) -> None:
    """A network's weights in their places of the supernet's, and elsewhere what would spoil its answers."""
    for name, value in whole.model.state_dict().items():
        places = part(space, genes, f"model.{name}", torch.arange(value.numel()).view_as(value))
        value.fill_(99)
        if places is not None:
            value.view(-1)[places.flatten()] = alone[name].flatten()


PUBLISHED = [("tiny", "autoformer_tiny"), ("small", "autoformer_small"), ("base", "autoformer_base")]


@pytest.mark.parametrize(("name", "published"), PUBLISHED)
def test_published_subnets_are_members(name: str, published: str) -> None:
    found, space = autoformer.VARIANTS[published], space_of(name)
    genes = genes_of(space, found["embed_dim"], heads=found["heads"], ratio=found["ratios"])
    assert all(gene in (*choices, 0) for gene, choices in zip(genes, space.choices, strict=True))
    args = space.args(genes)
    assert (args["embed_dim"], args["heads"], args["ratios"]) == (found["embed_dim"], found["heads"], found["ratios"])


def genes_of(space: Space, width: int, **columns: tuple[float, ...]) -> Genes:
    depth, deepest = len(next(iter(columns.values()))), max(space.depth)
    rows = [(*columns[key], *(0.0,) * (deepest - depth)) for key in space.blocks]
    return (depth, width, *(number for row in rows for number in row))


def published_glit() -> Genes:
    columns = {key: tuple(getattr(found, key) for found in glit.TINY) for key in space_of("glit").blocks}
    usual = {"inner": 1, "wider": 1, "kernel": 31}
    for key, value in usual.items():  # of what a block has not, the space has one choice alone
        choices = space_of("glit").blocks[key]
        columns[key] = tuple(value if len(c) == 1 else n for n, c in zip(columns[key], choices, strict=True))
    return genes_of(space_of("glit"), 192, **columns)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("glit", "glit__glit_tiny_patch16_224"),
        pytest.param("tiny", "autoformer__autoformer_super_T", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_official_networks_give_their_answers_through_the_supernet(name: str, file: str) -> None:
    golden, space = json.loads((GOLDEN / f"{file}.json").read_text()), space_of(name)
    family, variant = (glit, "glit_tiny_patch16_224") if name == "glit" else (autoformer, "autoformer_tiny")
    found = autoformer.VARIANTS["autoformer_tiny"]
    genes = published_glit() if name == "glit" else genes_of(space, 192, heads=found["heads"], ratio=found["ratios"])
    assert all(gene in (*choices, 0) for gene, choices in zip(genes, space.choices, strict=True))
    alone = timm.create_model(variant).eval()
    alone.load_state_dict(family.load_official(verify.official_weights(golden)), strict=False)
    whole = supernet(space, 224)
    _put(space, genes, whole, dict(alone.state_dict()))
    kind = getattr(torch, golden.get("dtype", "float32"))
    member = filled(space, genes, whole).to(kind)
    member.model.head = alone.head.to(kind)
    output = member.model(verify.image_input(golden["input"]).to(kind))
    assert verify.compare(output, golden) <= (1e-9 if kind is torch.float64 else 1e-4)


def test_a_step_draws_by_its_number_alone() -> None:
    space = space_of("micro")
    drawn = [space.draw(random.Random(f"0/{step}")) for step in range(200)]
    assert drawn == [space.draw(random.Random(f"0/{step}")) for step in range(200)]
    for place, choices in enumerate(space.choices):
        assert {genes[place] for genes in drawn} - {0} == set(choices)


@pytest.mark.parametrize("name", SPACES)
def test_spaces_are_named_and_written_down(name: str) -> None:
    """A member's arguments survive config.json, and build it."""
    space = space_of(name)
    args = space.args(space.draw(random.Random(0)))
    back = {
        key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(json.dumps(args)).items()
    }
    assert back == args
    with torch.device("meta"):
        timm.create_model(space.backbone, **back)


def test_an_unknown_space_and_another_backbone_are_refused() -> None:
    with pytest.raises(UserError, match="no space 'tyni'; known: micro, tiny"):
        space_of("tyni")
    holder = torch.nn.Module()
    holder.backbone = create_backbone("vit_tiny_patch16_224", model_args={"depth": 1})
    with pytest.raises(UserError, match=r"train\.space: the largest of micro is autoformer_tiny with"):
        entangle(holder, space_of("micro"), 0)
