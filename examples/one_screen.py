"""Pretraining on one screen: images, views, method, loss, step, teacher and k-NN, of the parts of every run.

    python examples/one_screen.py TRAIN VAL [STEPS]

TRAIN, VAL: folders with one sub-folder a class; the classes serve to score, nothing learns from them.
"""

import sys

import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.batch import to_views
from ssl_vit.data.loader import build_loader
from ssl_vit.data.sources import Source, open_source
from ssl_vit.eval.features import extract
from ssl_vit.eval.knn import knn
from ssl_vit.eval.readout import Readout
from ssl_vit.methods.byol import BYOL
from ssl_vit.methods.byol_config import Config
from ssl_vit.methods.method import Progress
from ssl_vit.schedules import warmup_cosine
from ssl_vit.training.optim import clip_gradients, make_optimizer, set_hyperparameters

SIZE, BATCH, RATE, DECAY = 64, 32, 1e-3, 0.05
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def score(backbone: Backbone, train: Source, val: Source) -> float:
    """k-NN top-1 of the features, in percent: the classes of the five nearest images of train vote."""
    bank, asked = (extract(backbone, source, Readout(SIZE, MEAN, STD)) for source in (train, val))
    return knn(bank.features, bank.labels, asked.features, asked.labels, ks=[5]).top1[5]


def main(train: Source, val: Source, total: int) -> None:
    """Pretrain for so many steps, and say what is learnt."""
    torch.manual_seed(0)
    shape = {"patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4, "global_pool": "avg"}
    backbone = create_backbone("vit_tiny_patch16_224", image_size=SIZE, model_args=shape)
    method = BYOL(Config(momentum=0.99, scale=(0.2, 1.0), hidden_dim=512), backbone, SIZE)
    optimizer = make_optimizer(method, "adamw", RATE)
    loader = build_loader(train, method.views(), batch_size=BATCH, seed=0, total_steps=total, workers=0)
    print(f"step 0: k-NN {score(method.exported(), train, val):.1f} %")

    for step, batch in enumerate(loader):  # a batch holds the crops of its images, as the plan of views asks for them
        progress = Progress(step, total, len(train) // BATCH)
        set_hyperparameters(optimizer, warmup_cosine(RATE, 0.0, step, total, total // 10), DECAY)
        loss = method(to_views(batch, MEAN, STD, "cpu"), progress).loss
        loss.backward()
        clip_gradients(method.parameters(), 3.0, per_tensor=False)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(progress)  # the teacher moves
        if (step + 1) % max(1, total // 5) == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}, k-NN {score(method.exported(), train, val):.1f} %")


if __name__ == "__main__":
    main(open_source(sys.argv[1]), open_source(sys.argv[2]), int((sys.argv[3:] or [200])[0]))
