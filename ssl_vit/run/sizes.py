"""Whether a run can have crops of the sizes that its schedule names, before any image is read."""

from __future__ import annotations

import math
from dataclasses import replace

from ssl_vit.backbones.backbone import BackboneInfo
from ssl_vit.config import RunConfig
from ssl_vit.data.plan import ViewPlan
from ssl_vit.errors import UserError
from ssl_vit.methods.base_config import Situation
from ssl_vit.schedules import size_shares


def sizes_of_run(config: RunConfig, given: Situation, info: BackboneInfo) -> list[Situation]:
    """The situations in which a run is, one for each size of its crops; given: that of its full size.

    Raises:
        UserError: the backbone takes no crops of one of the sizes.
    """
    if config.train.sizes is None:
        return [given]
    full, found = config.backbone.image_size, list[Situation]()
    for size, _ in size_shares(config.train.sizes):
        fits = info.any_size and size % info.multiple == 0 and size >= info.smallest
        if size != full and not fits:
            able = (
                f"multiples of {info.multiple} from {info.smallest} on"
                if info.any_size
                else f"{info.size[0]} pixels only"
            )
            raise UserError(
                f"train.sizes: {size} pixels, and {info.name} takes {able}; name such sizes, leave train.sizes out, or "
                "choose another backbone"
            )
        rows, columns = (math.ceil(cells * size / full) for cells in given.grid)
        found.append(replace(given, image_size=size, grid=(rows, columns)))
    return found


def plans_of_run(config: RunConfig, plan: ViewPlan, info: BackboneInfo) -> list[tuple[float, ViewPlan]]:
    """The share of the steps that each size of crops has, and what images are turned into by then."""
    if config.train.sizes is None:
        return [(1.0, plan)]
    full = config.backbone.image_size
    sizes = size_shares(config.train.sizes)
    return [(share, plan.scaled(size, full, info.multiple, info.smallest)) for size, share in sizes]
