"""What a step of each method costs against plain DINO's: images/s and peak memory, on the same backbone.

    python benchmarks/methods.py [--backbone vit_tiny_patch16_224] [--rounds 4] [--peers PEERS/bin/python] [--json FILE]

Every measurement is a process of its own, one thread, CPU time; methods and DINO alternate, and each row is the median
of the ratios of its rounds. The last two rows are EsViT's region loss against the straightforward one, which keeps the
logits of every region over all prototypes and the similarities of all pairs. --peers adds the rows of methods_peers.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import methods_peers
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.config import load_config
from ssl_vit.files import write_atomically
from ssl_vit.methods import config_class, list_methods
from ssl_vit.methods.esvit import EsViT, regions
from ssl_vit.methods.esvit_config import Config
from ssl_vit.methods.heads import DINOHead
from ssl_vit.run.facts import Facts
from ssl_vit.run.plan import resolve_config
from ssl_vit.run.prepare import build_method
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.step import Learner, ReadyViews, take_step

IMAGES, STEPS, WARM = 8, 3, 1
REGIONS = {"images": 8, "dim": 384, "prototypes": 65536, "global": 7, "local": 3, "crops": 8}


def step_cost(method: str, backbone: str) -> dict[str, float]:
    """Images/s of CPU time and peak memory (GB) of whole steps at 224 pixels: loss, gradients, clip, AdamW, teacher."""
    facts = Facts(1_281_167, 224, lambda: ((0.5,) * 3, (0.25,) * 3), gpus=0, cpus=1, bfloat16=False)
    flags = {"data.path": "none", "backbone.name": backbone, "method.name": method, "train.batch_size": IMAGES}
    if method == "moby":
        flags["method.queue_size"] = 4096
    config, _ = resolve_config(load_config(flags=flags), facts)
    torch.manual_seed(0)
    built = build_method(config)
    batch = [torch.randn(view.count * IMAGES, 3, view.size, view.size) for view in built.views().views]
    learner = Learner(new_fabric(config.train), built, config, per_epoch=50, total=100)
    for step in range(WARM + STEPS):
        if step == WARM:
            started = time.process_time()
        take_step(learner, ReadyViews(batch), step)
    return {"images_per_second": STEPS * IMAGES / (time.process_time() - started), "memory": _peak()}


def region_cost(kind: str) -> dict[str, float]:
    """The same of forward and backward of the region loss alone; its value too, that both must share."""
    torch.manual_seed(0)
    r = REGIONS
    seen = torch.randn(2 * r["images"], r["dim"], r["global"], r["global"])
    student = torch.randn(2 * r["images"], r["dim"], r["global"], r["global"], requires_grad=True)
    local = torch.randn(r["crops"] * r["images"], r["dim"], r["local"], r["local"], requires_grad=True)
    heads = [DINOHead(r["dim"], r["prototypes"], hidden_dim=512, bottleneck_dim=256) for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    if kind == "ours":
        method = EsViT.__new__(EsViT)
        torch.nn.Module.__init__(method)
        method.config = Config(centering="mean")
        method.patch_heads = lambda: (heads[0], heads[1])  # type: ignore[method-assign]  # the loss without the networks
        method.register_buffer("patch_center", torch.zeros(1, r["prototypes"]))
    held, started = _peak(), time.process_time()
    if kind == "ours":
        loss = method.region_loss(seen, [student, local], 0.04)[0]
    else:
        loss = straightforward(heads, seen, [student, local], r["images"])
    torch.autograd.backward(loss)
    cost = {"images_per_second": r["images"] / (time.process_time() - started), "memory": _peak()}
    return cost | {"net_mb": 1000 * (cost["memory"] - held), "loss": loss.item()}


def straightforward(heads: list[DINOHead], seen: Tensor, crops: list[Tensor], images: int) -> Tensor:
    """2106.09785's region loss, every logit and similarity at once."""
    keys, queries = regions(seen, images), [view for crop in crops for view in regions(crop, images)]
    with torch.no_grad():
        targets = (heads[1](keys.flatten(0, 2)) / 0.04).softmax(-1).view(*keys.shape[:3], -1)
    terms = []
    for v, query in enumerate(queries):
        logits = (heads[0](query) / 0.1).log_softmax(-1)
        for t in {0, 1} - {v}:
            similarity = torch.einsum("bsd,btd->bst", F.normalize(query, dim=-1), F.normalize(keys[t], dim=-1))
            match = similarity.argmax(-1)[..., None].expand(-1, -1, logits.shape[-1])
            terms.append(-(targets[t].gather(1, match) * logits).sum(-1).mean())
    return torch.stack(terms).mean()


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measured(*words: str) -> dict[str, float]:
    """One measurement, in a new process with one thread."""
    line = [sys.executable, __file__, "--one", *words]
    result = subprocess.run(line, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def compared(name: str, ours: list[str], base: list[str], rounds: int) -> dict[str, Any]:
    """Medians of the ratios, ours over the other, of alternating rounds."""
    pairs = [(measured(*ours), measured(*base)) for _ in range(rounds)]
    row: dict[str, Any] = {"row": name}
    for key in ("images_per_second", "memory"):
        row[key] = statistics.median(mine[key] for mine, _ in pairs)
        row[f"{key} ratio"] = statistics.median(mine[key] / other[key] for mine, other in pairs)
    if "loss" in pairs[0][0]:
        row["losses"] = [pairs[0][0]["loss"], pairs[0][1]["loss"]]
    return row


def main() -> None:
    """All rows, or with --one a single measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment that has the peers, see methods_peers.py")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        torch.set_num_threads(1)
        kind, *words = args.one
        print(json.dumps(step_cost(*words) if kind == "step" else region_cost(*words)))
        return
    rows = []
    for method in list_methods():
        config = config_class(method)
        if method in ("dino", "detreg"):  # the latter trains a detector and not the backbone
            continue
        if config.plain_only and not args.backbone.startswith(("vit", "deit")):
            continue
        rows.append(
            compared(f"{method} / dino", ["step", method, args.backbone], ["step", "dino", args.backbone], args.rounds)
        )
        print(rows[-1], flush=True)
    rows.append(compared("region loss / straightforward", ["region", "ours"], ["region", "plain"], args.rounds))
    print(rows[-1], flush=True)
    for row in methods_peers.ROWS if args.peers else ():
        for precision in ("bf16-mixed", "32-true"):
            rows.append(methods_peers.compared(row, args.peers, args.rounds, precision))
            print(rows[-1], flush=True)
    if args.json:
        text = json.dumps({"backbone": args.backbone, "images": IMAGES, "regions": REGIONS, "rows": rows}, indent=1)
        write_atomically(args.json, lambda path: path.write_text(text + "\n"))


if __name__ == "__main__":
    main()
