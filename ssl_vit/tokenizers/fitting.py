"""Fitting a tokenizer on the user's images, before the method that predicts its words takes its first step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_vit.errors import RunFailed
from ssl_vit.progress import memory_gb, progress_bar
from ssl_vit.schedules import noise_seed, warmup_cosine
from ssl_vit.tokenizers.tokenizer import Grid, Tokenizer

LR = 2e-3  # peak, of AdamW
WARMUP = 0.05  # of the steps


def fit(
    tokenizer: Tokenizer, images: Iterable[Tensor], steps: int, grid: Grid, seed: int, device: torch.device
) -> float:
    """Fit a tokenizer for so many steps; the loss of the last. Exact for a seed: nothing here keeps a state.

    images: a batch [B, 3, S, S] for each step, normalised, on the device. RunFailed where the loss stops being finite.
    """
    tokenizer.to(device).train()
    trained, loss = tokenizer.learnt(), float("nan")
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=LR, fused=True)
    with progress_bar("tokenizer {task.completed}/{task.total}") as bar:
        task = bar.add_task("", total=steps, numbers="")
        start, waited, ready = time.monotonic(), 0.0, time.monotonic()
        for step, batch in enumerate(images):
            waited += time.monotonic() - ready
            torch.manual_seed(noise_seed(seed, step, 0))
            optimizer.param_groups[0]["lr"] = warmup_cosine(LR, 0.0, step, steps, round(WARMUP * steps))
            found = tokenizer.fit_loss(batch, grid)
            optimizer.zero_grad()
            torch.autograd.backward(found)
            optimizer.step()
            loss = float(found.detach())
            if not math.isfinite(loss):
                raise RunFailed(f"the tokenizer can't be fitted: its loss is {loss} at step {step}; check the images")
            ready = time.monotonic()
            speed, share = (step + 1) * len(batch) / (ready - start), 100 * waited / (ready - start)
            numbers = f"loss {loss:.3f} · {speed:.0f} images/s · data wait {share:.0f} % · {memory_gb():.1f} GB"
            bar.update(task, completed=step + 1, numbers=numbers)
    for parameter in trained:
        parameter.requires_grad_(False)
        parameter.grad = None
    return loss


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write all weights of a tokenizer into one file."""
    save_file({name: value.detach().cpu().contiguous() for name, value in tokenizer.state_dict().items()}, path)


def put_back(tokenizer: Tokenizer, path: Path) -> None:
    """Give a tokenizer the weights that :func:`save` has written."""
    tokenizer.load_state_dict(load_file(path))
