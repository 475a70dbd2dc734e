"""What a step of a method costs here and in two peers: images/s and peak memory, same network, same heads, one thread.

    python -m venv PEERS && PEERS/bin/pip install lightly==1.6.0 timm stable-pretraining==0.1.8
    python benchmarks/methods_peers.py PEERS/bin/python [--precision 32-true] [--rounds 4] [--rows NAME …] [--json FILE]

A step is the method's forward, its loss, backward, AdamW and the teacher's average, on images in memory; in bf16-mixed
(autocast) or float32, each of us as its own training loop would run it there.
Every measurement is a process of its own, CPU time; ours and a peer alternate, a row is the median of the ratios of its
rounds. Lightly has parts and no methods: they are put together here as its documentation does. Where the peers differ
from the papers (stable-pretraining's iBOT has no local crops and no weight norm, its BEiT draws words by a random
projection) ours is set to the same number of crops and prototypes, and otherwise left as it is.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BACKBONE, SIZE, IMAGES, STEPS, WARM = "vit_tiny_patch16_224", 224, 8, 3, 1
DIM, GRID = 192, 14  # of that network
HEADS = {"hidden_dim": 2048, "bottleneck_dim": 256, "out_dim": 8192}  # DINO's, of iBOT
IMPORTS = {  # whose -> what is there before memory is counted
    "ours": ("ssl_vit.run.pretrain", "ssl_vit.training.optim", "ssl_vit.methods.dino"),
    "lightly": ("lightly.loss", "lightly.models.modules", "timm"),
    "stable-pretraining": ("stable_pretraining.methods",),
}
LOSS = Callable[[], Tensor]
AFTER = Callable[[], None]
STEP = tuple[list[nn.Parameter], LOSS, AFTER]

# row -> our method and its settings; the name of a row is PEER METHOD
PLAIN_IBOT = {"out_dim": 8192, "local_crops": 0}
ROWS: dict[str, tuple[str, dict[str, object]]] = {
    "stable-pretraining beit": ("beit", {"codes": 8192}),
    "stable-pretraining ibot": ("ibot", PLAIN_IBOT),
    "stable-pretraining mae": ("mae", {}),
    "lightly moco": ("mocov3", {}),
    "lightly byol": ("byol", {}),
    "lightly ibot": ("ibot", PLAIN_IBOT),
    "lightly mae": ("mae", {}),
}


def ours(method: str, settings: dict[str, object], precision: str) -> Iterator[float]:
    """Losses of our steps, for as long as they are asked for."""
    from ssl_vit.config import load_config
    from ssl_vit.run.facts import Facts
    from ssl_vit.run.plan import resolve_config
    from ssl_vit.run.prepare import build_method
    from ssl_vit.training.fabric import new_fabric
    from ssl_vit.training.step import Learner, ReadyViews, take_step

    facts = Facts(1_281_167, SIZE, lambda: ((0.5,) * 3, (0.25,) * 3), gpus=0, cpus=1, bfloat16=False)
    flags: dict[str, Any] = {"data.path": "none", "backbone.name": BACKBONE, "method.name": method}
    flags |= {"train.batch_size": IMAGES} | {f"method.{key}": value for key, value in settings.items()}
    flags["train.precision"] = precision
    config, _ = resolve_config(load_config(flags=flags), facts)
    built = build_method(config)
    batch = [torch.randn(view.count * IMAGES, 3, view.size, view.size) for view in built.views().views]
    learner = Learner(new_fabric(config.train), built, config, per_epoch=50, total=100)
    while True:
        yield take_step(learner, ReadyViews(batch), 1).loss


def autocast(precision: str) -> torch.autocast:
    """What Lightning's plugin of that name puts around a forward."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")


def theirs(peer: str, method: str, precision: str) -> Iterator[float]:
    """The same of a peer, with torch's default AdamW, which both of them use."""
    parameters, loss_of, after = (lightly if peer == "lightly" else stable)(method)
    optimizer = torch.optim.AdamW(parameters, 1e-4)
    while True:
        with autocast(precision):
            loss = loss_of()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        after()
        yield loss.item()


def stable(method: str) -> STEP:
    """stable-pretraining's own modules."""
    import stable_pretraining.methods as methods
    from stable_pretraining.backbone.utils import TeacherStudentWrapper

    first, second = torch.randn(2, IMAGES, 3, SIZE, SIZE)
    if method == "ibot":
        dims = {"projector_hidden_dim": HEADS["hidden_dim"], "projector_bottleneck_dim": HEADS["bottleneck_dim"]}
        module = methods.iBOT(BACKBONE, n_cls_prototypes=8192, n_patch_prototypes=8192, **dims)
    else:
        module = {"beit": methods.BEiT, "mae": methods.MAE}[method](BACKBONE)
    module.train()
    teachers = [part for part in module.modules() if isinstance(part, TeacherStudentWrapper)]

    def loss() -> Tensor:
        out = module(global_views=[first, second]) if method == "ibot" else module(first)
        found: Tensor = out.loss
        return found

    def after() -> None:
        for teacher in teachers:
            teacher.update_teacher()

    return [p for p in module.parameters() if p.requires_grad], loss, after


def lightly(method: str) -> STEP:
    """The method put together from Lightly's parts."""
    return {"moco": _moco, "byol": _byol, "ibot": _ibot, "mae": _mae}[method]()


def _timm() -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(BACKBONE, num_classes=0)
    return network


def _followed(student: nn.Module) -> tuple[nn.Module, AFTER]:
    """A frozen copy, and what moves it after the student."""
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    teacher = copy.deepcopy(student)
    deactivate_requires_grad(teacher)
    return teacher, lambda: update_momentum(student, teacher, m=0.99)


def _siamese(projector: nn.Module, compare: Callable[[Tensor, Tensor], Tensor]) -> STEP:
    """A student predicts from each view what its moving average projects of the other."""
    from lightly.models.modules import BYOLPredictionHead

    student, predictor = nn.Sequential(_timm(), projector), BYOLPredictionHead(256, 4096, 256)
    teacher, after = _followed(student)
    views = torch.randn(2, IMAGES, 3, SIZE, SIZE)

    def loss() -> Tensor:
        queries = [predictor(student(view)) for view in views]
        with torch.no_grad():
            keys = [teacher(view) for view in views]
        return compare(queries[0], keys[1]) + compare(queries[1], keys[0])

    return [*student.parameters(), *predictor.parameters()], loss, after


def _moco() -> STEP:
    """Both views are queries, as in MoCo v3; its memory bank is Lightly's own."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead

    projector = MoCoProjectionHead(DIM, 4096, 256, num_layers=3, batch_norm=True)
    return _siamese(projector, NTXentLoss(0.2, memory_bank_size=(4096, 256)))


def _byol() -> STEP:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLProjectionHead

    criterion = NegativeCosineSimilarity()
    return _siamese(BYOLProjectionHead(DIM, 4096, 256), lambda said, wanted: criterion(said, wanted) / 2)


def _ibot() -> STEP:
    from lightly.loss import DINOLoss, IBOTPatchLoss
    from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM
    from lightly.models.utils import deactivate_requires_grad, random_block_mask, update_momentum

    def branch() -> nn.ModuleList:
        head = DINOProjectionHead(DIM, HEADS["hidden_dim"], HEADS["bottleneck_dim"], HEADS["out_dim"])
        return nn.ModuleList([MaskedVisionTransformerTIMM(vit=_timm()), head])

    student, teacher = branch(), branch()  # a weight norm can't be copied
    deactivate_requires_grad(teacher)
    views = DINOLoss(output_dim=HEADS["out_dim"])
    patches = IBOTPatchLoss(output_dim=HEADS["out_dim"])
    images = torch.randn(2 * IMAGES, 3, SIZE, SIZE)

    def loss() -> Tensor:
        grid = random_block_mask((2 * IMAGES, GRID, GRID))
        mask = torch.zeros(2 * IMAGES, GRID * GRID + 1, dtype=torch.bool)
        mask[:, 1:] = grid.flatten(1)
        with torch.no_grad():
            tokens = teacher[0].encode(images)
            seen, seen_patches = teacher[1](tokens[:, 0]), teacher[1](tokens[mask])
        tokens = student[0].encode(images, mask=mask)
        said, said_patches = student[1](tokens[:, 0]), student[1](tokens[mask])
        total: Tensor = views(list(seen.chunk(2)), list(said.chunk(2)), epoch=0)
        return total + patches(seen_patches, said_patches, grid)

    parameters = [p for p in student.parameters() if p.requires_grad]
    return parameters, loss, lambda: update_momentum(student, teacher, m=0.99)


def _mae() -> STEP:
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

    network = MaskedVisionTransformerTIMM(vit=_timm())
    decoder = MAEDecoderTIMM(GRID * GRID, 16, embed_dim=DIM, decoder_embed_dim=512, decoder_depth=8)
    criterion = nn.MSELoss()
    images = torch.randn(IMAGES, 3, SIZE, SIZE)

    def loss() -> Tensor:
        kept, hidden = utils.random_token_mask((IMAGES, GRID * GRID + 1), mask_ratio=0.75)
        known = decoder.embed(network.encode(images, idx_keep=kept))
        tokens = utils.repeat_token(decoder.mask_token, (IMAGES, GRID * GRID + 1))
        tokens = utils.set_at_index(tokens, kept, known.type_as(tokens))
        drawn = decoder.predict(utils.get_at_index(decoder.decode(tokens), hidden))
        wanted = utils.get_at_index(utils.patchify(images, 16), hidden - 1)
        found: Tensor = criterion(drawn, utils.normalize_mean_var(wanted, dim=-1))
        return found

    return [p for p in (*network.parameters(), *decoder.parameters()) if p.requires_grad], loss, lambda: None


def cost(steps: Iterator[float], whose: str) -> dict[str, float]:
    """Images/s of CPU time, peak memory (GB) beyond what importing takes, and the last loss."""
    for module in IMPORTS[whose]:
        importlib.import_module(module)
    imported = _peak()
    for _ in range(WARM):
        next(steps)
    started = time.process_time()
    loss = [next(steps) for _ in range(STEPS)][-1]
    seconds = time.process_time() - started
    if not math.isfinite(loss):
        raise SystemExit(f"the loss is {loss}: this step computes nothing")
    return {"images_per_second": STEPS * IMAGES / seconds, "memory": _peak() - imported, "loss": loss}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measured(python: str, *words: str) -> dict[str, float]:
    """One measurement in a new process."""
    result = subprocess.run([python, __file__, python, "--one", *words], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(words)}:\n{result.stderr[-2000:]}")
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def compared(row: str, peers: str, rounds: int, precision: str) -> dict[str, Any]:
    """Medians of ours, of theirs and of the ratios of alternating rounds."""
    pairs = [
        (measured(sys.executable, "ours", row, precision), measured(peers, *row.split(), precision))
        for _ in range(rounds)
    ]
    found: dict[str, Any] = {"row": row, "precision": precision}
    for key in ("images_per_second", "memory"):
        found[key] = statistics.median(mine[key] for mine, _ in pairs)
        found[f"{key} theirs"] = statistics.median(other[key] for _, other in pairs)
        found[f"{key} ratio"] = statistics.median(mine[key] / other[key] for mine, other in pairs)
    return found


def main() -> None:
    """All rows, or with --one a single measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", metavar="PYTHON", help="of an environment that has both peers")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        whose, what, precision = args.one
        steps = ours(*ROWS[what], precision) if whose == "ours" else theirs(whose, what, precision)
        print(json.dumps(cost(steps, whose)))
        return
    rows = []
    for row in args.rows:
        rows.append(compared(row, args.peers, args.rounds, args.precision))
        print(rows[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps({"backbone": BACKBONE, "images": IMAGES, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
