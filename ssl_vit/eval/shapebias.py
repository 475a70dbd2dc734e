"""Shape against texture: what decides where an image has the shape of one class and the texture of another."""

from __future__ import annotations

import re
from pathlib import PurePath

import numpy as np

from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.labelled import open_labelled
from ssl_vit.eval.logistic import fit_logistic

_TEXTURE = re.compile(r".*-(.*?)\d*$")  # as the published stimuli are named: airplane/airplane1-bicycle2.png


def score(job: Job) -> Outcome:
    """The kind "shapebias" (arXiv 1811.12231, 2103.14586) gives decisions for shape and for texture, in percent.

    ``shape_bias`` is the share of shape among the decisions for one of both. Images whose two classes are one are
    left out.
    """
    train = open_labelled(job.folders["train"], "train", job.outside_links)
    conflict = open_labelled(job.folders["conflict"], "conflict", job.outside_links)
    shapes, textures = conflicts(conflict, train.classes)
    bank = job.features(train, "train")
    job.classes = len(train.classes)
    probe = fit_logistic(bank.features, bank.labels, seed=job.seed, device=job.device)
    found = job.features(conflict, "conflict")
    order = {conflict.name(i): i for i in range(len(conflict))}
    rows = [order[name] for name in found.files]
    shape, texture, decided = shapes[rows], textures[rows], probe.predict(found.features)
    counted = shape != texture
    if not counted.any():
        raise UserError(f"--conflict {conflict.root}: no image whose shape and texture are of different classes")
    for_shape, for_texture = (100 * float((decided == cue)[counted].mean()) for cue in (shape, texture))
    either = for_shape + for_texture
    scores = {
        "shape": for_shape,
        "texture": for_texture,
        "shape_bias": 100 * for_shape / either if either else None,
        "images": int(counted.sum()),
    }
    settings = {"classifier": "logistic regression, C chosen on a tenth of train"}
    return Outcome(scores, settings, seed=job.seed, more={"C": probe.rate})


def conflicts(source: Source, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Each image gets the class of its shape [N], by its folder, and of its texture [N], by its name.

    Raises:
        UserError: a name without a texture, or a class that train doesn't have.
    """
    numbers = {name: i for i, name in enumerate(classes)}
    found = []
    for i in range(len(source)):
        path = PurePath(source.name(i))
        match = _TEXTURE.match(path.stem)
        shape, texture = path.parts[0], match.group(1) if match else None
        if texture is None:
            raise UserError(f"{source.root}: {path}: expected a name that ends in -TEXTURE, as airplane1-bicycle2.png")
        for name in (shape, texture):
            if name not in numbers:
                raise UserError(f"{source.root}: {path}: {name} is no class of --train ({', '.join(classes[:5])} …)")
        found.append((numbers[shape], numbers[texture]))
    pairs = np.array(found)
    return pairs[:, 0], pairs[:, 1]
