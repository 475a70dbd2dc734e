"""All targets of an export have in common: a probe, a comparison, and running the snippet that is handed out."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.keymap import KeyMap, Mapped
from ssl_vit.errors import RunFailed, UserError

WEIGHTS = "model.safetensors"
TOLERANCE = 1e-4  # of the largest value: another library adds up in another order

_ROUNDINGS = 4  # float32 from float64, which two libraries may be from each other

KeyPairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Verified:
    """The proof says who loaded the weights, and how far the outputs were apart, relative to the largest value.

    Without a difference nobody loaded them: their names and shapes were held against the library's.
    """

    consumer: str
    max_difference: float | None


class ExportTarget(Protocol):
    """A target is a library that weights are written for; each is one file."""

    def write(self, backbone: AdaptedBackbone, folder: Path, description: Mapping[str, Any]) -> KeyPairs:
        """Fill an empty folder, and say which of timm's names became which; UserError for what has no place there.

        description: of the run that trained the weights, for targets that have a place for it.
        """
        ...

    def snippet(self, folder: Path, backbone: AdaptedBackbone) -> str:
        """Return the Python that loads the folder, five lines at most."""
        ...

    def verify(self, folder: Path, backbone: AdaptedBackbone) -> Verified:
        """Run the snippet and compare what it loads with the backbone; RunFailed where they differ."""
        ...


def to_library_names(
    backbone: AdaptedBackbone, maps: Mapping[str, KeyMap], library: str, family: str, drop: set[str]
) -> Mapped:
    """Rename the backbone's weights to the library's names; UserError where it has no such family or weight."""
    name = backbone.info.name
    if family not in maps:
        raise UserError(f"{name}: {library} has no {family} among {', '.join(maps)}; use --to timm or --to onnx")
    mapped = maps[family].export(weights_of(backbone))
    for key in mapped.left:
        if key not in drop:
            raise UserError(f"{name}: {key} has no place in {library}'s {family}; use --to timm or --to onnx")
    return mapped


def weights_of(backbone: AdaptedBackbone) -> dict[str, Tensor]:
    """Return the state dict on the CPU, each tensor in memory of its own."""
    return {key: value.detach().cpu().clone().contiguous() for key, value in backbone.model.state_dict().items()}


def save_weights(state: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write model.safetensors into a folder."""
    tensors = {key: value.clone().contiguous() for key, value in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", **(metadata or {})})


def run_snippet(code: str, consumer: str) -> dict[str, Any]:
    """Run our own snippet and return the names that it defines; RunFailed where it can't be run."""
    names: dict[str, Any] = {}
    try:
        exec(code, names)
    except Exception as error:  # whatever the library raises means that the export is useless
        said = " ".join(str(error).split())
        raise RunFailed(f"{consumer} cannot load this export: {said}") from error
    return names


def frozen(backbone: AdaptedBackbone) -> AdaptedBackbone:
    """Copy the backbone to the CPU for inference, so that a model in training is left as it is."""
    return copy.deepcopy(backbone).cpu().eval()


def probe(backbone: AdaptedBackbone, batch: int = 2) -> Tensor:
    """Draw images of noise, [batch, 3, H, W]."""
    return torch.randn(batch, 3, *backbone.info.size, generator=torch.Generator().manual_seed(0))


def verified(
    consumer: str,
    expected: Sequence[Tensor],
    found: Sequence[Tensor],
    exact: Callable[[], Sequence[Tensor]] | None = None,
) -> Verified:
    """Compare outputs one by one; RunFailed where one has another shape, or differs by more than the tolerance.

    exact: gives our outputs in float64. A network that magnifies rounding, as ResT does by dividing by the spread of
    its attention, is farther than the tolerance from itself; it may differ by a few times that.
    """
    for ours, theirs in zip(expected, found, strict=True):
        if ours.shape != theirs.shape:
            raise RunFailed(f"{consumer} gives an output of {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
    largest = max(relative_difference(ours, theirs) for ours, theirs in zip(expected, found, strict=True))
    rounding = max(map(relative_difference, exact(), expected)) if exact is not None and largest > TOLERANCE else 0.0
    if largest > max(TOLERANCE, _ROUNDINGS * rounding):
        raise RunFailed(f"outputs differ by {largest:.1e} of the largest after loading with {consumer}")
    return Verified(consumer, largest)


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference relative to the largest value; infinite for NaN."""
    apart = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-12))
    return math.inf if math.isnan(apart) else apart


def same_weights(consumer: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Verified:
    """Check names without loading: every weight must be there under its name, and turn back into ours."""
    for key in sorted(expected.keys() | found.keys()):
        if key not in expected or key not in found or not torch.equal(expected[key], found[key]):
            raise RunFailed(f"{key} is not the same when read back from the export for {consumer}")
    return Verified(consumer, None)


@contextmanager
def warnings_unsaid() -> Iterator[None]:
    """Inside, no library's warnings are logged: those that are known there, and that nobody could do anything about."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
