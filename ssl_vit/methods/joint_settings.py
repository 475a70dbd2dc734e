"""The settings that SimCLR, VICReg, VISReg and SIGReg share. Needs no torch."""

from __future__ import annotations

from dataclasses import replace

from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.errors import UserError
from ssl_vit.methods.base_config import (
    AUTO,
    TINY,
    Auto,
    Choices,
    Count,
    CountOrZero,
    Fraction,
    MethodConfig,
    Scale,
    Situation,
)


class JointConfig(MethodConfig):
    """The projector, and what a crop covers."""

    hidden_dim: Count = 2048
    """Width of the projector's hidden layers (papers: 2048; VICReg: 8192)."""
    out_dim: Count = 128
    """Length of a projection."""
    scale: Auto[Scale] = AUTO
    """Share of the image's area that a crop covers, low and high."""
    flip: Fraction = 0.5
    """Share of crops that are mirrored; 0 where left and right differ, as in text (papers: 0.5)."""

    def crop_choices(self, given: Situation, low: float, why: str) -> Choices:
        """The paper's crops, or larger ones of small images."""
        if given.image_size < TINY:
            return {"method.scale": ((0.3, 1.0), "less of so small an image shows nothing")}
        return {"method.scale": ((low, 1.0), why)}

    def check(self, given: Situation) -> None:
        """Images are compared with each other."""
        if given.batch_size < 2 * given.parts:
            raise UserError(
                f"train.batch_size: {self.name} compares images with each other; set at least {2 * given.parts}"
            )


class MultiCropConfig(JointConfig):
    """LeJEPA's crops (2511.08544), which VISReg (2606.02572) kept: a few global ones, and smaller local ones."""

    local_crops: Auto[CountOrZero] = AUTO
    """Small crops an image beside the 2 large ones (papers: 6 on ImageNet)."""
    local_scale: Scale = (0.05, 0.3)
    """Share of the image's area that a small crop covers, low and high (LeJEPA: 0.05 to 0.3)."""
    local_size: Auto[Count] = AUTO
    """Side of a small crop, pixels (papers: 96 or 98, of 224)."""
    slices: Count = 1024
    """Random directions along which projections are compared with a normal distribution, drawn anew at each step
    (LeJEPA: 1024; VISReg: 1024 to 4096)."""

    def multi_crop_choices(self, given: Situation) -> Choices:
        """The papers' crops; of small images the two global views alone."""
        patches = round(given.image_size * 96 / 224 / given.multiple)
        size = max(patches * given.multiple, given.smallest)
        choices = self.crop_choices(given, 0.3, "papers")
        choices["method.local_crops"] = (6, "papers")
        choices["method.local_size"] = (size, "96 of 224, in whole patches")
        if not given.any_size:
            choices["method.local_size"] = (given.image_size, "this backbone takes one size only")
        if given.image_size < TINY:
            choices["method.local_crops"] = (0, "none: so small an image shows too little in parts")
        return choices

    def views(self, image_size: int) -> ViewPlan:
        """Two crops of ``image_size`` pixels, and the local ones."""
        both = contrast_view("global", image_size, self.scale, self.flip)
        if not self.local_crops:
            return ViewPlan((both,))
        local = contrast_view("local", self.local_size, self.local_scale, self.flip)
        return ViewPlan((both, replace(local, count=self.local_crops)))


def contrast_view(name: str, size: int, scale: tuple[float, float], flip: float) -> View:
    """Two crops with BYOL's colours, blurred alike and not solarised.

    The blur, up to 2 pixels on crops of 224, keeps its proportion to smaller ones.
    """
    return View(
        name=name,
        count=2,
        size=size,
        scale=scale,
        flip_p=flip,
        jitter=(0.4, 0.4, 0.2, 0.1),
        jitter_p=0.8,
        gray_p=0.2,
        blur_p=0.5,
        blur_sigma=(0.1 * size / 224, 2.0 * size / 224),
    )
