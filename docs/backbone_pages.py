"""Writes the pages of our own backbone families: ``python docs/backbone_pages.py``.

A page's text is the docstring of the family's file, its figures are in ``ssl_vit/backbones/families/variants.csv``,
its drawing is below. ``--measure`` writes that table anew first (a minute): parameters and multiply-adds are measured,
published accuracies are kept. A test holds the pages and the table against the code.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import ModuleType

import timm
import torch
from timm.models import model_entrypoint
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ssl_vit.backbones import families, list_backbones
from ssl_vit.backbones import taxonomy as taxonomy_table
from ssl_vit.backbones.taxonomy import PLACES
from ssl_vit.backbones.variants import TABLE, Variant, variants

PAGES = Path(__file__).parent / "backbones"

# A block of each family, one line a branch: "+" for one with a shortcut around it, ">" from step to step, "|" side by
# side. What is drawn is the block that makes the family what it is.
BLOCKS: dict[str, tuple[str, ...]] = {
    "as_mlp": (
        "+ norm > 1 × 1 > groups moved along rows: 1 × 1 | groups moved along columns: 1 × 1 > norm > 1 × 1",
        "+ norm > MLP",
    ),
    "augvit": ("+ layer norm > attention | learned shortcut 1 | learned shortcut 2", "+ layer norm > MLP"),
    "autoformer": (
        "+ layer norm > attention with relative positions in keys and values, heads found for the block",
        "+ layer norm > MLP, width found for the block",
    ),
    "cat": (
        "+ layer norm > attention inside 7 × 7 windows",
        "+ layer norm > MLP",
        "+ layer norm > attention across windows, each channel by itself",
        "+ layer norm > MLP",
    ),
    "ccs_mlp": ("+ layer norm > a cyclic convolution over all tokens, by group of channels", "+ layer norm > MLP"),
    "cmt": (
        "+ depthwise 3 × 3",
        "+ layer norm > attention to a reduced map, with a learned bias",
        "+ layer norm > 1 × 1 up > depthwise 3 × 3 with a shortcut > 1 × 1 down",
    ),
    "cotnet": ("+ 1 × 1 down > static context: 3 × 3 | dynamic context: a kernel for each place > gates > 1 × 1 up",),
    "cswin": (
        "+ layer norm > half the heads: stripes of rows | half the heads: stripes of columns > linear",
        "+ layer norm > MLP",
    ),
    "dvt": (
        "+ layer norm > attention, its logits added to those of the network before, mixed and resized",
        "+ layer norm of tokens beside those of the network before > MLP",
    ),
    "dynamicvit": ("plain ViT blocks > a predictor scores the patches > the best are kept > plain ViT blocks",),
    "cyclemlp": (
        "+ layer norm > linear, channels look along rows | linear, channels look along columns | linear > weighed sum",
        "+ layer norm > MLP",
    ),
    "focal": (
        "+ layer norm > own window | ring of 3 around it | pooled windows around it > attention",
        "+ layer norm > MLP",
    ),
    "glit": (
        "+ layer norm > some channels: attention | the others: gated convolution along the tokens > joined",
        "+ layer norm > MLP",
    ),
    "gfnet": ("+ layer norm > to frequencies > a filter for each channel > back > layer norm > MLP",),
    "hat_net": (
        "+ norm > attention inside grid cells > attention to averages of cells > 1 × 1",
        "+ 1 × 1 up > depthwise 3 × 3 > 1 × 1 down",
    ),
    "lg_transformer": (
        "+ layer norm > windows | windows of the map halved | windows of the map quartered > sum",
        "+ layer norm > MLP",
    ),
    "linmapper": (
        "+ layer norm > values > a learned matrix over the 49 places of a window > linear",
        "+ layer norm > MLP",
    ),
    "multi_stream": ("first block", "+ stream 1: blocks | stream 2: blocks", "last block"),
    "p2t": (
        "+ layer norm > map averaged at ratio 1 | ratio 2 | ratio 3 | ratio 4 > attention to them",
        "+ layer norm > 1 × 1 up > depthwise 3 × 3 > 1 × 1 down",
    ),
    "pgt": ("+ layer norm > attention inside each group", "+ layer norm > MLP", "+ depthwise 3 × 3"),
    "pvt": ("+ layer norm > attention to a map reduced by a strided convolution", "+ layer norm > MLP"),
    "rams_trans": (
        "first look: plain ViT > attention rolled out > largest region, zoomed > second look: the same ViT",
    ),
    "refiner": (
        "+ layer norm > attention, handing on its maps",
        "+ layer norm > MLP",
        "+ layer norm > those maps: 1 × 1 to three times the heads, 3 × 3, 1 × 1 back > applied to own values",
        "+ layer norm > MLP",
    ),
    "regionvit": (
        "+ layer norm > attention among regional tokens",
        "+ layer norm > attention of each regional token and its window",
        "+ layer norm > MLP",
    ),
    "rest": (
        "+ layer norm > logits to a reduced map > heads mixed by 1 × 1 > softmax, instance norm > values",
        "+ layer norm > MLP",
    ),
    "pruned_vit": (
        "+ layer norm > the channels that are left > attention of the heads that are left",
        "+ layer norm > the channels that are left > MLP of the units that are left",
    ),
    "scaling_vit": ("plain ViT blocks > a learned query attends to all patches > MLP with a shortcut",),
    "s2_mlp": ("+ layer norm > linear > quarters of the channels moved four ways > linear", "+ layer norm > MLP"),
    "shuffle": (
        "+ batch norm > attention in windows, of neighbours or spread",
        "+ batch norm > depthwise 7 × 7",
        "+ batch norm > MLP",
    ),
    "t2t_vit": (
        "unfold 7 × 7, stride 4 > token mixer > unfold 3 × 3, stride 2 > token mixer > project 3 × 3, stride 2",
        "plain ViT blocks",
    ),
    "vip": (
        "+ layer norm > columns, segment by segment | rows, segment by segment | channels > weighed sum > linear",
        "+ layer norm > MLP",
    ),
    "vision_xformer": ("+ layer norm > Performer, Linformer, Nyström or Fourier mixing", "+ layer norm > MLP"),
    "vmoe": (
        "+ layer norm > attention",
        "+ layer norm > router > MLP 1 | MLP 2 | … | MLP 8 > weighted sum of the two chosen",
    ),
    "widenet": (
        "+ layer norm of this depth > the one attention",
        "+ layer norm of this depth > the one router > MLP 1 | MLP 2 | MLP 3 | MLP 4 > weighted sum of the two chosen",
    ),
    "vit_early_conv": ("3 × 3 convolutions with batch norm and ReLU, strides to 16 > 1 × 1", "plain ViT blocks"),
}


NOTE = """GMACs: 1e9 multiply-adds of one image at the size given, classifier included. Top-1: on ImageNet-1k, trained
on nothing else, at that size; empty where none was published or could be read."""


def drawing(branches: tuple[str, ...]) -> str:
    """A block as a mermaid flowchart."""
    lines, names = ["flowchart LR", "  x([in])"], (f"n{i}" for i in count())
    before = ["x"]
    for branch in branches:
        entry, steps = before, branch.removeprefix("+ ").split(" > ")
        for step in steps:
            nodes = [(next(names), label) for label in step.split(" | ")]
            lines += [f'  {start} --> {name}["{label}"]' for start in before for name, label in nodes]
            before = [name for name, _ in nodes]
        if branch.startswith("+ "):
            total = next(names)
            lines += [f"  {start} --> {total}((+))" for start in (*entry, *before)]
            before = [total]
    return "\n".join(["```mermaid", *lines, *(f"  {start} --> y([out])" for start in before), "```"])


def our_families() -> Iterator[tuple[ModuleType, list[str]]]:
    """Each family's module and the names of its variants, smallest first."""
    names: dict[str, list[str]] = {}
    for row in list_backbones():
        if row.name in variants():
            names.setdefault(row.family, []).append(row.name)
    for _, members in sorted(names.items()):
        module = inspect.getmodule(model_entrypoint(members[0]))
        assert module is not None
        yield module, sorted(members, key=lambda name: (variants()[name].parameters, name))


def page(module: ModuleType, names: list[str]) -> str:
    """A family's page: idea, paper, block, variants."""
    family = module.__name__.rpartition(".")[2]
    title, _, text = (inspect.getdoc(module) or "").partition("\n\n")
    papers = re.findall(r"\d{4}\.\d{5}", title)
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text)
    rows = [
        "| variant | parameters | with classifier | GMACs | pixels | published top-1 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        known, (_, _, side) = variants()[name], module.default_cfgs[name].default.input_size
        top1 = "" if known.top1 is None else f"{known.top1:.1f}"
        counts = f"{known.parameters:,} | {known.with_classifier:,} | {known.gmacs:.3f}"
        rows.append(f"| `{name}` | {counts} | {side} | {top1} |")
    links = ", ".join(f"[arXiv:{paper}](https://arxiv.org/abs/{paper})" for paper in papers)
    code = f"[`{family}.py`](../../ssl_vit/backbones/families/{family}.py)"
    parts = [f"# {family}", title, text, f"Paper: {links}. Code: {code}.", "## The block", drawing(BLOCKS[family])]
    parts += ["## Variants", "\n".join(rows), NOTE]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def pages() -> dict[str, str]:
    """File name -> text, of all pages and their index."""
    found = {module.__name__.rpartition(".")[2]: (module, names) for module, names in our_families()}
    index = ["| family | idea | variants | parameters |", "|---|---|---:|---:|"]
    for family, (module, names) in found.items():
        title = (inspect.getdoc(module) or "").partition("\n\n")[0].rstrip(".")
        sizes = [f"{variants()[name].parameters / 1e6:.1f}" for name in (names[0], names[-1])]
        index.append(f"| [{family}]({family}.md) | {title} | {len(names)} | {' to '.join(dict.fromkeys(sizes))} M |")
    head = "# Backbone families of our own\n\nFamilies of 2021 that timm lacks. Images may have any size.\n\n"
    head += "What each mixes its tokens with, and timm's: [taxonomy](taxonomy.md)."
    written = {f"{family}.md": page(module, names) for family, (module, names) in found.items()}
    return {"README.md": "\n".join([head, "", *index, ""]), "taxonomy.md": taxonomy(), **written}


def taxonomy() -> str:
    """The page of the places of attention and of other mixers: what each is, and which families stand there."""
    found: dict[str, dict[str, None]] = {place: {} for place in PLACES}
    for row in list_backbones():
        for place in row.mixer:
            found[place][row.family if row.name in variants() else f"{row.family} (timm)"] = None
    lines = ["# What tokens are mixed with", (inspect.getdoc(taxonomy_table) or "").partition("\n\n")[2]]
    lines += ["`ssl-vit list backbones --mixer linear` lists the members of a place."]
    table = ["| place | what it is | families with such networks |", "|---|---|---|"]
    table += [f"| `{place}` | {PLACES[place]} | {', '.join(sorted(members))} |" for place, members in found.items()]
    return "\n\n".join([*lines, "\n".join(table)]).replace(" Needs no torch.", "") + "\n"


def measured(name: str) -> tuple[int, int, float]:
    """Parameters without and with the classifier, and GMACs, on the meta device."""
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model = timm.create_model(name).eval().requires_grad_(False)
        model(torch.zeros(1, *model.pretrained_cfg["input_size"]))
        total = sum(parameter.numel() for parameter in model.parameters())
        model.reset_classifier(0)
    alone = sum(parameter.numel() for parameter in model.parameters())
    return alone, total, round(counter.get_total_flops() / 2e9, 3)


def measure() -> None:
    """Write the table anew, all but what was published."""
    top1 = {name: known.top1 for name, known in variants().items()}
    ours = [row.name for row in list_backbones() if model_entrypoint(row.name).__module__.startswith(families.__name__)]
    rows = [{"name": name, **Variant(*measured(name), top1.get(name))._asdict()} for name in ours]
    with (Path(families.__path__[0]) / TABLE).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    variants.cache_clear()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="write the table of variants anew first")
    if parser.parse_args().measure:
        measure()
    PAGES.mkdir(exist_ok=True)
    for name, text in pages().items():
        (PAGES / name).write_text(text)
