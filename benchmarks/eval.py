"""k-NN, the linear sweep and reading features against what others do, in one run and on one thread.

    python benchmarks/eval.py [--bank N] [--queries M] [--train N] [--images N] [--rounds R] [--only NAME] [--alone]

The defaults are the full size (a bank of 1,281,167 x 384, 50,000 queries): hours on a CPU. Prints CPU seconds, medians
of alternating rounds, and ratios; every k-NN must agree on the neighbours' labels before its time counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.data.augment import normalise
from ssl_vit.eval.knn import KS, TEMPERATURE, knn, unit
from ssl_vit.eval.linear import RATES, Scaling, train
from ssl_vit.eval.readout import Readout, read_out

DIM, CLASSES, CHUNK, BATCH = 384, 1000, 100, 256


def features(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, DIM)).astype(np.float32)
    labels = rng.integers(0, CLASSES, count)
    found = rng.standard_normal((count, DIM), dtype=np.float32)
    found *= 2.5
    for start in range(0, count, 65536):
        found[start : start + 65536] += centres[labels[start : start + 65536]]
    return found, labels


def loop(bank: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, k: int) -> torch.Tensor:
    """One k as the common evaluation loops do it: a hundred queries a time, one-hot votes for every class."""
    votes, found = torch.zeros(k, CLASSES), []
    for part in queries.split(CHUNK):
        similarity, index = (part @ bank.T).topk(k, largest=True, sorted=True)
        near = labels.view(1, -1).expand(len(part), -1).gather(1, index)
        votes.resize_(len(part) * k, CLASSES).zero_()
        votes.scatter_(1, near.view(-1, 1), 1)
        weights = (similarity / TEMPERATURE).exp()
        found.append((votes.view(len(part), -1, CLASSES) * weights[..., None]).sum(1).sort(1, True)[1][:, 0])
    return torch.cat(found)


def matmul_topk(bank: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor) -> dict[int, torch.Tensor]:
    """One search for all k by torch, votes added up by class."""
    found: dict[int, list[torch.Tensor]] = {k: [] for k in KS}
    for part in queries.split(CHUNK):
        similarity, index = (part @ bank.T).topk(max(KS))
        weights, near = (similarity / TEMPERATURE).exp(), labels[index]
        for k in KS:
            votes = torch.zeros(len(part), CLASSES).scatter_add_(1, near[:, :k], weights[:, :k])
            found[k].append(votes.argmax(1))
    return {k: torch.cat(parts) for k, parts in found.items()}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def alternate(rounds: int, works: dict[str, Callable[[], Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in works}
    results = {}
    for _ in range(rounds):
        for name, work in works.items():
            spent, results[name] = timed(work)
            seconds[name].append(spent)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


class Peak:
    """The most memory of its own that the process had inside, beside what it had before; mapped files don't count."""

    def __enter__(self) -> Peak:
        self.bytes, self._stop = 0, threading.Event()
        self._before, self._watch = self._own(), threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            self.bytes = max(self.bytes, self._own() - self._before)

    @staticmethod
    def _own() -> int:
        line = next(each for each in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in each)
        return 1024 * int(line.split()[1])


def bench_knn(bank_size: int, queries_size: int, rounds: int, alone: bool) -> None:
    bank, labels = features(bank_size, 1)
    queries, wanted = features(queries_size, 2)
    print(f"k-NN, {bank_size} x {DIM}, {queries_size} queries:")
    with tempfile.TemporaryFile() as file:  # the bank as extraction leaves it: a mapped file
        bank.tofile(file)
        mapped = np.memmap(file, np.float32, "r", shape=bank.shape)
        with Peak() as peak:
            spent, _ = timed(lambda: knn(mapped, labels, queries, wanted))
    print(f"  ours, 4 k: {spent:.1f} s, {peak.bytes / 1e9:.2f} GB beside bank ({bank.nbytes / 1e9:.2f} GB) and queries")
    if alone:
        return
    tensors = [torch.from_numpy(each) for each in (unit(bank), labels, unit(queries))]
    seconds, results = alternate(
        rounds,
        {
            "ours, 4 k": lambda: knn(bank, labels, queries, wanted),
            "matmul + topk, 4 k": lambda: matmul_topk(*tensors),
            "loop, k = 20": lambda: loop(*tensors, 20),
            "loop, 4 k": lambda: {k: loop(*tensors, k) for k in KS},
        },
    )
    ours = results["ours, 4 k"]
    for k in KS:
        for name in ("matmul + topk, 4 k", "loop, 4 k"):
            same = float((torch.from_numpy(ours.predictions[k]) == results[name][k]).float().mean())
            assert same > 0.999, (name, k, same)
    for name, value in seconds.items():
        print(f"  {name}: {value:.1f} s, {value / seconds['ours, 4 k']:.2f} x ours")


def plain_run(x: torch.Tensor, y: torch.Tensor, classes: int, rate: float) -> torch.Tensor:
    """One rate as it is commonly trained: a module, autograd, an optimizer and a schedule; an epoch."""
    model = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
    for batch in order:
        loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return torch.cat([model.weight.T, model.bias[None]]).detach()


def bench_linear(count: int, rounds: int) -> None:
    found, labels = features(count, 1)
    classes = 100
    x, y = Scaling.of(found)(found), torch.from_numpy(labels % classes)
    bare = x[:, :-1].contiguous()

    def sweep(rates: tuple[float, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return train(x, y, rates, classes, epochs=1, batch_size=BATCH, dtype=dtype)

    seconds, results = alternate(
        rounds,
        {
            "nine plain runs": lambda: [plain_run(bare, y, classes, rate) for rate in RATES],
            "nine sweeps of one rate": lambda: [sweep((rate,))[0] for rate in RATES],
            "one sweep": lambda: sweep(RATES),
            "one sweep, bfloat16": lambda: sweep(RATES, torch.bfloat16),
        },
    )
    print(f"linear, {count} x {DIM}, {classes} classes, {len(RATES)} rates, an epoch:")
    for name, value in seconds.items():
        right = [100 * float(((x @ each).argmax(1) == y).float().mean()) for each in results[name]]
        print(f"  {name}: {value:.2f} s, {value / seconds['nine plain runs']:.2f} of nine plain runs, ", end="")
        print("top-1 " + " ".join(f"{each:.2f}" for each in right))


def bench_forward(count: int, rounds: int) -> None:
    backbone = create_backbone("vit_small_patch16_224").eval()
    readout = Readout.of(backbone.info)
    images = torch.randint(0, 256, (count, 3, 224, 224), dtype=torch.uint8)
    ready = normalise(images, readout.mean, readout.std)

    def from_bytes() -> np.ndarray:
        return read_out(backbone, normalise(images, readout.mean, readout.std), readout).cpu().numpy()

    with torch.inference_mode():
        seconds, _ = alternate(rounds, {"bare": lambda: backbone(ready), "read": from_bytes})
    ratio = seconds["bare"] / seconds["read"]
    print(
        f"ViT-S/16, {count} images in memory: bare {count / seconds['bare']:.2f} images/s, extraction {ratio:.3f} of it"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("bank", 1_281_167), ("queries", 50_000), ("train", 100_000), ("images", 64), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--alone", action="store_true", help="our k-NN without the others")
    parser.add_argument("--only", choices=("knn", "linear", "forward"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    if args.only in (None, "knn"):
        bench_knn(args.bank, args.queries, args.rounds, args.alone)
    if args.only in (None, "linear"):
        bench_linear(args.train, args.rounds)
    if args.only in (None, "forward"):
        bench_forward(args.images, args.rounds)


if __name__ == "__main__":
    main()
