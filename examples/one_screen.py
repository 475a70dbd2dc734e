"""Pretraining on one screen: images, views, method, loss, step, teacher and k-NN, of the parts of every run.

    python examples/one_screen.py TRAIN VAL [EPOCHS]

TRAIN, VAL: folders with one sub-folder a class; the classes serve to score, nothing learns from them.
"""

import sys

import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.backbone import Backbone
from ssl_vit.config import load_config
from ssl_vit.data.loader import build_loader, steps_per_epoch
from ssl_vit.data.sources import Source, open_source
from ssl_vit.eval.features import extract
from ssl_vit.eval.knn import knn
from ssl_vit.eval.readout import Readout
from ssl_vit.methods.byol import BYOL
from ssl_vit.run.plan import resolve_for
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.step import Learner, take_step

SIZE, BATCH = 64, 16
SETTINGS = ["method.name=byol", "method.hidden_dim=512", "method.scale=[0.2, 1.0]"]
SHAPE = {"patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4, "global_pool": "avg"}


def score(backbone: Backbone, train: Source, val: Source) -> float:
    """k-NN top-1 of the features, in percent: the classes of the five nearest images of train vote."""
    bank, asked = (extract(backbone, source, Readout.of(backbone.info)) for source in (train, val))
    return knn(bank.features, bank.labels, asked.features, asked.labels, ks=[5]).top1[5]


def main(train: Source, val: Source, epochs: int) -> None:
    """Pretrain for so many epochs, and say what is learnt."""
    chosen = {"backbone.name": "vit_tiny_patch16_224", "backbone.args": SHAPE, "backbone.image_size": SIZE}
    chosen |= {"data.path": train.root, "train.epochs": epochs, "train.batch_size": BATCH, "train.devices": 1}
    config, _ = resolve_for(load_config(sets=SETTINGS, flags=chosen), train)  # what is not chosen, "auto" decides
    torch.manual_seed(config.train.seed)
    method = BYOL(config.method, create_backbone("vit_tiny_patch16_224", image_size=SIZE, model_args=SHAPE), SIZE)

    per_epoch = steps_per_epoch(len(train), BATCH)
    total = epochs * per_epoch
    learner = Learner(new_fabric(config.train), method, config, per_epoch, total)  # with an optimiser, on a device
    loader = build_loader(train, method.views(), batch_size=BATCH, seed=config.train.seed, total_steps=total, workers=0)
    print(f"step 0: k-NN {score(method.exported(), train, val):.1f} %")
    for step, batch in enumerate(loader):  # a batch: the crops of its images, as the method's plan of views asks
        outcome = take_step(learner, batch, step)  # colours, loss, gradient, clip, optimiser, teacher
        if (step + 1) % per_epoch == 0:
            print(f"step {step + 1}: loss {outcome.loss:.3f}, k-NN {score(method.exported(), train, val):.1f} %")


if __name__ == "__main__":
    main(open_source(sys.argv[1]), open_source(sys.argv[2]), int((sys.argv[3:] or [10])[0]))
