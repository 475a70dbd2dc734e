"""What a run without flags is made of: method, network, crops, by the number of images, their size and the machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ssl_vit.config import RunConfig, load_config
from ssl_vit.run.facts import Facts
from ssl_vit.run.plan import Decision, resolve_config

FEW = Facts(images=2000, side=300, colours=lambda: ((0.5,) * 3, (0.2,) * 3), gpus=0, cpus=2, bfloat16=False)


def chosen(facts: Facts, **settings: Any) -> tuple[RunConfig, dict[str, Decision]]:
    """The configuration, and its decisions by key; settings: "method__flip" for method.flip."""
    flags = {key.replace("__", "."): value for key, value in settings.items()}
    config, decisions = resolve_config(load_config(flags={"data.path": "nowhere", **flags}), facts)
    return config, {each.key: each for each in decisions}


@pytest.mark.parametrize(
    ("facts", "settings", "name"),
    [
        (FEW, {}, "simclr"),
        (replace(FEW, gpus=4), {}, "simclr"),
        (replace(FEW, images=19_999), {"backbone__name": "swin_tiny_patch4_window7_224"}, "simclr"),
        (replace(FEW, images=20_000), {}, "dino"),
        (FEW, {"backbone__name": "resnet18"}, "dino"),
        (FEW, {"method__name": "dino"}, "dino"),
        (FEW, {"method__name": "vicreg"}, "vicreg"),
    ],
)
def test_few_images_are_learnt_from_by_the_plain_contrast(facts: Facts, settings: dict[str, str], name: str) -> None:
    config, decisions = chosen(facts, **settings)
    assert config.method.name == name
    assert ("method.name" in decisions) == (name == "simclr")
    if name == "simclr":
        assert "fewer than 20,000 images" in decisions["method.name"].why


def test_settings_without_a_method_are_those_of_the_usual_one_and_that_is_said() -> None:
    config, decisions = chosen(FEW, method__flip=0.0)
    assert (config.method.name, decisions["method.name"].value) == ("dino", "dino")
    assert decisions["method.name"].why.startswith(
        "method.flip: set without --method, so it is dino's; --method simclr"
    )
    assert "method.name" not in chosen(replace(FEW, images=50_000), method__flip=0.0)[1]


@pytest.mark.parametrize(
    ("side", "gpus", "size", "patch", "depth"),
    [
        (28, 0, 32, 8, 4),
        (64, 0, 64, 16, 4),
        (64, 1, 64, 8, None),
        (128, 0, 128, 16, 4),
        (200, 0, 192, 24, 4),
        (128, 1, 128, None, None),
        (223, 1, 208, None, None),
        (224, 0, 224, None, None),
        (3000, 0, 224, None, None),
    ],
)
def test_no_crop_is_larger_than_the_images(
    side: int, gpus: int, size: int, patch: int | None, depth: int | None
) -> None:
    config, decisions = chosen(replace(FEW, side=side, gpus=gpus))
    assert config.backbone.image_size == size
    assert (config.backbone.args.get("patch_size"), config.backbone.args.get("depth")) == (patch, depth)
    if size < 224:
        assert decisions["backbone.image_size"].why == f"the images are {side} pixels, median short side"
