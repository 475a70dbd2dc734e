"""What a recipe becomes where the network begins with trained weights, for all methods alike. Needs no torch.

A method's own recipe is made for a network that begins with random numbers. Followed from good weights it destroys them
within some thousand images: the heads are random, and at a full rate their gradients go through every layer.
"""

from __future__ import annotations

from ssl_vit.methods.base_config import Choices, Situation

AT_RANDOM: dict[str, object] = {
    "optim.backbone_rate": 1.0,
    "optim.layer_decay": 1.0,
    "optim.head_weight_decay": None,
    "optim.heads_first": 0,
}
"""What these settings are of a network that begins with random numbers, or that is not trained."""

OWN_RATE, FOREIGN_RATE = 0.1, 0.02  # of the rate that the heads have
LAYER_DECAY = 0.9  # LightlyTrain's, where it goes on from published weights
SLOW = 0.996  # DINO's (2104.14294), made for a teacher that lasts
LONGEST_HOLD = 1000  # steps


def continued(recipe: Choices, given: Situation) -> Choices:
    """What changes of a method's recipe, and why, where the network begins with the weights of a file.

    >>> from dataclasses import replace
    >>> given = Situation(2000, 100, 3000, 224, 64, 384, "transformer", True, 14, drops_paths=True, grid=(16, 16))
    >>> given = replace(given, weights="DINOv2 (arXiv 2304.07193)")
    >>> {key: value for key, (value, _) in continued({"optim.lr": (1e-3, "")}, given).items()}["optim.backbone_rate"]
    0.02
    """
    own, whose = given.own, "your run" if given.own else "another's training"
    rate, word = (OWN_RATE, "tenth") if own else (FOREIGN_RATE, "fiftieth")
    steps = min(LONGEST_HOLD, given.steps // 10)
    decay = recipe.get("optim.weight_decay", (0.0, ""))
    changed: Choices = {
        "optim.backbone_rate": (
            rate,
            f"weights of {whose}: a {word} of the rate of the heads, which are new",
        ),
        "optim.layer_decay": (LAYER_DECAY, "trained weights: the first layers, which are general, change least"),
        "optim.heads_first": (steps, "trained weights: the new heads learn alone first, a tenth of the run"),
        "optim.weight_decay": (0.0, "trained weights are not pulled to zero"),
        "optim.weight_decay_end": (0.0, "trained weights are not pulled to zero"),
        "optim.head_weight_decay": (decay[0], f"for the heads as ever: {decay[1]}"),
        "backbone.drop_path": (0.0, "trained weights: layers that are suddenly left out would look like noise"),
    }
    if given.products:
        changed |= {
            "optim.backbone_rate": (1.0, "LoRA: products that begin at 0 learn as the heads do"),
            "optim.layer_decay": (1.0, "LoRA: the weights themselves stay"),
        }
    if (momentum := recipe.get("method.momentum")) is not None:
        kept = momentum[0]
        assert isinstance(kept, float)
        if kept < SLOW:
            changed["method.momentum"] = (SLOW, "trained weights: a slow teacher, which stays near them")
    return changed
