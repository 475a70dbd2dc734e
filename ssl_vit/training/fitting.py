"""Fitting a tokenizer on the user's images, before the method that predicts its words takes its first step."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ssl_vit.data.batch import to_views
from ssl_vit.data.loader import Loader
from ssl_vit.errors import RunFailed
from ssl_vit.files import write_atomically
from ssl_vit.progress import progress_bar
from ssl_vit.schedules import noise_seed, warmup_cosine
from ssl_vit.tokenizers.tokenizer import Grid, Tokenizer
from ssl_vit.training.progress import memory_gb

LR = 2e-3  # peak, of AdamW
WARMUP = 0.05  # of the steps


def fit(
    tokenizer: Tokenizer,
    loader: Loader,
    grid: Grid,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    device: torch.device,
) -> float:
    """As many steps as the loader has batches; the loss of the last. Exact for a seed: nothing here keeps a state.

    RunFailed where the loss stops being finite.
    """
    tokenizer.to(device).train()
    trained, steps, loss = tokenizer.learnt(), len(loader), float("nan")
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=LR, fused=True)
    with progress_bar("tokenizer {task.completed}/{task.total}") as bar:
        task = bar.add_task("", total=steps, numbers="")
        start, waited, ready = time.monotonic(), 0.0, time.monotonic()
        for step, batch in enumerate(loader):
            waited += time.monotonic() - ready
            torch.manual_seed(noise_seed(seed, step, 0))
            optimizer.param_groups[0]["lr"] = warmup_cosine(LR, 0.0, step, steps, round(WARMUP * steps))
            images = to_views(batch, mean, std, device)[0]
            found = tokenizer.fit_loss(images, grid)
            optimizer.zero_grad()
            torch.autograd.backward(found)
            optimizer.step()
            loss = float(found.detach())
            if not math.isfinite(loss):
                raise RunFailed(f"the tokenizer can't be fitted: its loss is {loss} at step {step}; check the images")
            ready = time.monotonic()
            speed, share = (step + 1) * len(images) / (ready - start), 100 * waited / (ready - start)
            numbers = f"loss {loss:.3f} · {speed:.0f} images/s · data wait {share:.0f} % · {memory_gb():.1f} GB"
            bar.update(task, completed=step + 1, numbers=numbers)
    for parameter in trained:
        parameter.requires_grad_(False)
        parameter.grad = None
    return loss


def save(tokenizer: Tokenizer, path: Path) -> None:
    """All of its weights in one file, whole or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in tokenizer.state_dict().items()}
    write_atomically(path, lambda staged: save_file(state, staged))


def restore(tokenizer: Tokenizer, path: Path) -> None:
    """What :func:`save` has written."""
    tokenizer.load_state_dict(load_file(path))
