"""How small images may be is known before a run, and no crop of our own choice is smaller."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch

from ssl_vit.backbones import backbone_info, create_backbone
from ssl_vit.config import load_config
from ssl_vit.errors import UserError
from ssl_vit.run.facts import Facts
from ssl_vit.run.plan import resolve_config
from tests.families import HEAVY, cheapest
from tests.test_families_train import small

FAMILIES = ["convnext", "edgenext", "focalnet", "nextvit", "pvt_v2", "resnet", "swin_transformer", "vision_transformer"]
GIVEN = {"data.path": "x", "data.mean": [0.5] * 3, "data.std": [0.2] * 3}


def facts(side: int, gpus: int = 0) -> Facts:
    return Facts(images=300, side=side, colours=lambda: pytest.fail("given"), gpus=gpus, cpus=2, bfloat16=False)


def settings_of(family: str) -> tuple[str, dict[str, Any]]:
    name, _, args = small(family)
    return name, {key: list(value) if isinstance(value, tuple) else value for key, value in args.items()}


def train(name: str, args: dict[str, Any], built: int, size: int) -> None:
    """Two images forth and back, in training."""
    torch.manual_seed(0)
    features = create_backbone(name, image_size=built, model_args=args).train()(torch.randn(2, 3, size, size))
    (features.pooled.sum() + features.patches.sum()).backward()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smallest_size_passes_and_the_next_below_does_not(family: str) -> None:
    name, args = settings_of(family)
    info = backbone_info(name, image_size=64, model_args=args)
    assert info.any_size
    assert info.smallest % info.multiple == 0
    for size in (info.smallest, info.smallest + info.multiple):
        train(name, args, 64, size)
    below = info.smallest - info.multiple
    if below > 0:
        with pytest.raises(Exception, match=r".") as failed:
            train(name, args, 64, below)
        assert not isinstance(failed.value, UserError)


def every_family() -> list[Any]:
    """All of them where there is time; one that needs large crops and an ordinary one always."""
    quick = {"fasternet", "deit"}
    return [pytest.param(f, marks=[] if f in quick else [pytest.mark.slow]) for f in sorted(cheapest().keys() - HEAVY)]


@pytest.mark.parametrize("family", every_family())
def test_what_every_family_is_given_passes(family: str) -> None:
    """The crops of every method, at its own size and at three small ones; or a line says why not.

    One that takes a single size gets no other, and one that takes any gets none below its smallest, which passes.
    """
    name, args = settings_of(family)
    own = small(family)[1]
    info = backbone_info(name, image_size=own, model_args=args)
    given = {(own, info.smallest), (own, info.smallest + info.multiple)} if info.any_size else set()
    for size in sorted({32, 48, 64, own}):
        for method in ("dino", "detreg", "simclr", "moby", "esvit"):
            flags = GIVEN | {"backbone.name": name, "backbone.args": args, "backbone.image_size": size}
            with suppress(UserError):
                config, _ = resolve_config(load_config(flags=flags | {"method.name": method}), facts(64))
                given |= {(size, view.size) for view in config.method.views(size).views}
    assert info.any_size or all(built == size for built, size in given)
    assert (own, own) in given
    for built, size in sorted(given):
        train(name, args, built, size)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [32, 48, 64])
@pytest.mark.parametrize("method", ["dino", "detreg"])
def test_the_crops_that_we_choose_pass(family: str, size: int, method: str) -> None:
    """Or the size of the large ones is refused, in a line that says what to set."""
    name, args = settings_of(family)
    flags = GIVEN | {"backbone.name": name, "backbone.args": args, "backbone.image_size": size, "method.name": method}
    usual = backbone_info(name, image_size=64, model_args=args)
    if size < usual.smallest or size % usual.multiple:
        with pytest.raises(UserError, match=rf"can't take images of {size}×{size} pixels"):
            resolve_config(load_config(flags=flags), facts(64))
        return
    config, _ = resolve_config(load_config(flags=flags), facts(64))
    chosen = config.method.local_size if method == "dino" else config.method.crop_size  # type: ignore[attr-defined]
    assert chosen <= size
    train(name, args, size, chosen)


def test_a_crop_that_is_too_small_is_refused_in_a_line() -> None:
    flags = GIVEN | {"backbone.name": "convnext_atto", "backbone.image_size": 64}
    least = backbone_info("convnext_atto", image_size=64).smallest
    with pytest.raises(UserError, match=f"local crops of 14 pixels, and convnext_atto takes .*from {least} on"):
        resolve_config(load_config(flags=flags | {"method.local_size": 14}), facts(64))
    with pytest.raises(UserError, match=f"can't take images of 16×16 pixels .*set image_size={least} or more"):
        resolve_config(load_config(flags=flags | {"backbone.image_size": 16}), facts(64))


def test_a_size_at_which_a_network_would_fail_at_the_first_step_is_refused() -> None:
    with pytest.raises(UserError, match="can't take images of 48×48 pixels, only multiples of 32"):
        backbone_info("mvitv2_tiny", image_size=48)


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize(("side", "size"), [(48, 32), (48, 48), (48, 40), (48, 36), (640, 32), (64, 112)])
def test_the_patch_is_chosen_from_the_size_of_the_crops(side: int, size: int, gpus: int) -> None:
    """Whatever the images measure: a whole number of patches, and enough of them."""
    config, _ = resolve_config(load_config(flags=GIVEN | {"backbone.image_size": size}), facts(side, gpus))
    chosen = config.backbone.args.get("patch_size", 16)
    assert isinstance(chosen, int)
    assert size % chosen == 0
    assert size // chosen >= 4
    info = backbone_info(config.backbone.name, image_size=size, model_args=config.backbone.args)
    assert info.grid == (size // chosen, size // chosen)


def test_sizes_that_are_not_square() -> None:
    """A run's crops are square, which is said; a backbone alone takes any, also as YAML and JSON write them."""
    flags = GIVEN | {"backbone.name": "vit_tiny_patch16_224"}
    for wrong in ([32, 48], [32], "wide", [], 0, -32, [32, 32, 32], True):
        with pytest.raises(UserError, match=r"backbone\.args\.img_size"):
            resolve_config(load_config(flags=flags | {"backbone.args": {"img_size": wrong}}), facts(64))
    for right in (64, [64, 64]):
        config, _ = resolve_config(load_config(flags=flags | {"backbone.args": {"img_size": right}}), facts(48))
        assert config.backbone.image_size == 64
    assert backbone_info("vit_tiny_patch16_224", image_size=[32, 48]).grid == (2, 3)  # type: ignore[arg-type]
    for sides in ([32], [32, 0], "32", [32.0, 48.0]):
        with pytest.raises(UserError, match=r"image_size: .*expected pixels"):
            backbone_info("vit_tiny_patch16_224", image_size=sides)  # type: ignore[arg-type]
