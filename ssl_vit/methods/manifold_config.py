"""The hyper-parameters of manifold distillation (arXiv 2107.01378). Needs no torch before a teacher is read."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ssl_vit.errors import UserError
from ssl_vit.methods.base_config import AUTO, Auto, Choices, CountOrZero, NonNegative, Situation
from ssl_vit.methods.distill_settings import TaughtConfig
from ssl_vit.registry import register_method

# YAML has lists and no tuples, so the outer types alone are lax.
Pair = Annotated[tuple[int, int], Field(strict=False)]
Pairs = Annotated[tuple[Pair, ...], Field(strict=False, min_length=1)]
ENDS = 4  # layers at each end that the paper pairs, of DeiT-Ti and CaiT-S24


@register_method("manifold", loss="ssl_vit.methods.manifold:Manifold")
class Config(TaughtConfig):
    """Distillation of how alike a frozen teacher's patches are, inside images and across them, in several layers."""

    name: Literal["manifold"] = "manifold"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "How alike a frozen teacher finds any two patches, of one image, of one place in all images and at random, the "
        "student shall find them too, layer by layer."
    )
    needs: ClassVar[str] = "any backbone, best a transformer, and the weights of a teacher (method.teacher)"
    choose_when: ClassVar[str] = "You want a smaller network of a teacher's kind, for tasks that look at patches."

    layers: Auto[Pairs] = AUTO
    """Pairs of layers, the student's and the teacher's, counted as timm counts, from 0 or from the end
    (paper: the first four and the last four)."""
    random_patches: CountOrZero = 192
    """Patches of the whole batch that are drawn at random and compared with each other (paper: 192)."""
    inside_weight: NonNegative = 1.0
    """Weight of the relations inside an image (paper: 1)."""
    across_weight: NonNegative = 1.0
    """Weight of the relations of images at one place (paper: 1)."""
    random_weight: NonNegative = 1.0
    """Weight of the relations of the patches that are drawn (paper: 1)."""

    def choose(self, given: Situation) -> Choices:
        """The paper's layers where both networks have as many, else the last two stages."""
        choices = super().choose(given)
        if self.teacher is None or self.layers != AUTO:
            return choices | {"method.layers": (((-1, -1),), "the last ones")}
        from ssl_vit.backbones.intermediates import layer_count
        from ssl_vit.methods.frozen_teacher import network_of

        own, its = given.layers(), layer_count(network_of(self.source()))
        if min(own, its) >= 2 * ENDS:
            numbers = [*range(ENDS), *range(-ENDS, 0)]
            return choices | {"method.layers": (tuple((n, n) for n in numbers), "paper: the first and last four")}
        last = range(max(0, own - 2), own)
        pairs = tuple((n, max(0, round((n + 1) * its / own) - 1)) for n in last)
        return choices | {"method.layers": (pairs, f"the last {len(pairs)} of {own}, at their depth in {its}")}

    def check(self, given: Situation) -> None:
        """A teacher that can be read, layers that both have, and grids that can be matched."""
        super().check(given)
        from ssl_vit.backbones.intermediates import layer_count
        from ssl_vit.methods.frozen_teacher import network_of

        counts = {"student": given.layers(), "teacher": layer_count(network_of(self.source()))}
        for pair in self.layers:
            for (whose, count), layer in zip(counts.items(), pair, strict=True):
                if not -count <= layer < count:
                    raise UserError(
                        f"method.layers: {list(pair)} asks for layer {layer} of the {whose}, which has layers 0 to "
                        f"{count - 1}; set pairs [student, teacher] of those"
                    )
        if self.inside_weight:
            self.check_grids(given, "inside_weight")
