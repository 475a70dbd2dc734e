"""Two processes with half of the images each compute what one process does with all of them."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from ssl_vit.methods import config_class, method_class
from ssl_vit.methods.method import Progress
from ssl_vit.methods.siamese import Siamese
from tests.methods.siamese import HIDDEN, OUT, SIZE, TOTAL, Tiny, batch

WORLD, IMAGES = 2, 6
SETTINGS = {"moby": {"queue_size": 2 * IMAGES}, "mocov3": {}, "byol": {}}


def make(name: str) -> Siamese:
    torch.manual_seed(0)
    config = config_class(name)(hidden_dim=HIDDEN, out_dim=OUT, momentum=0.99, **SETTINGS[name])
    return method_class(name)(config, Tiny(), SIZE).double()


def two_steps(name: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Loss and gradients, mean over processes, and the buffers, after two steps of SGD."""
    method = make(name)
    found = {}
    for step in range(2):
        views = [view.chunk(world)[rank] for view in batch(step, images=IMAGES)]
        out = method(views, Progress(step, TOTAL, 1))
        method.zero_grad()
        out.loss.backward()
        trained = {key: p for key, p in method.named_parameters() if p.requires_grad}
        for p in [out.loss.detach(), *(p.grad for p in trained.values())]:
            if world > 1:
                dist.all_reduce(p)
            p /= world
        found[f"loss {step}"] = out.loss.detach()
        with torch.no_grad():
            for p in trained.values():
                p -= 0.1 * p.grad
        method.after_step(Progress(step, TOTAL, 1))
    return found | method.state_dict()


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    torch.save({name: two_steps(name, rank, WORLD) for name in SETTINGS}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.get_context("forkserver").set_forkserver_preload(["ssl_vit.run.pretrain"])
    start_processes(_rank, (port, str(folder)), nprocs=WORLD, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.dist
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_compute_what_one_does(name: str, by_rank: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    alone = two_steps(name, 0, 1)
    for found in by_rank:
        assert found[name].keys() == alone.keys()
        for key, wanted in alone.items():
            torch.testing.assert_close(found[name][key], wanted, rtol=0, atol=1e-9, msg=f"{name}: {key}")
