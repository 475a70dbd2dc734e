"""Where objects may be, without labels: boxes from region priors, kept in a folder for DETReg (arXiv 2106.04550)."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from ssl_vit.errors import UserError
from ssl_vit.spelling import did_you_mean

if TYPE_CHECKING:
    from ssl_vit.proposals.prior import Prior

# A new prior is one file and one entry here.
PRIORS = {
    "selective_search": "ssl_vit.proposals.selective_search:SelectiveSearch",
    "patches": "ssl_vit.proposals.patches:PatchRegions",
    "random": "ssl_vit.proposals.random:RandomBoxes",
}


def create_prior(name: str, **settings: Any) -> Prior:
    """Make a prior by name with its settings; UserError if there is no such prior or setting.

    >>> create_prior("random", count=5, seed=1)
    RandomBoxes(count=5, seed=1)
    """
    if name not in PRIORS:
        raise UserError(f"unknown region prior {name!r}; {did_you_mean(name, list(PRIORS))}")
    module, _, attribute = PRIORS[name].partition(":")
    prior: type[Prior] = getattr(importlib.import_module(module), attribute)
    known = [field.name for field in dataclasses.fields(prior)]
    for key in settings:
        if key not in known:
            raise UserError(f"the region prior {name!r} has no setting {key!r}; {did_you_mean(key, known)}")
    return prior(**settings)
