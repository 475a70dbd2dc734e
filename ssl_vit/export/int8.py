"""An ONNX graph in 8 bits: weights by channel, activations by their range on the user's own images (static)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ssl_vit.backbones.backbone import BackboneInfo
from ssl_vit.data.augment import normalise
from ssl_vit.data.evalset import EvalDataset
from ssl_vit.data.sources import Source
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.export.onnx import FILE
from ssl_vit.export.target import warnings_unsaid

INT8 = "model.int8.onnx"
CALIBRATE, COMPARE = 128, 64  # images, evenly over the source
_OPERATIONS = ["Conv", "Gemm", "MatMul"]

Pixels = NDArray[np.float32]  # [1, 3, S, S], normalised


class Quantised(NamedTuple):
    """What became of the graph."""

    bytes: int
    before: int  # bytes
    cosine: float  # of the pooled features with the float ones, mean
    least: float  # the smallest
    patches: float  # of the patches, mean
    images: int  # compared

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{INT8}: {self.before / 1e6:.1f} MB in {self.bytes / 1e6:.1f} MB; pooled features have a cosine of "
            f"{self.cosine:.4f} with the float ones (least {self.least:.4f}), patches of {self.patches:.4f}, on "
            f"{self.images} images that it was not calibrated with"
        )


def quantise(folder: Path, info: BackboneInfo, source: Source) -> Quantised:
    """Write model.int8.onnx beside model.onnx, and compare what both give.

    Raises:
        UserError: fewer than two images that can be read.
        RunFailed: onnxruntime can't quantise the graph, or not run what it made.
    """
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    calibrating, comparing = _images(source, info)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        """Gives the images one by one."""

        def __init__(self) -> None:
            self.left = iter(calibrating)

        def get_next(self) -> dict[str, Pixels] | None:
            """The next one, by the name of the graph's input; None after the last."""
            image = next(self.left, None)
            return None if image is None else {"images": image}

    options = {"MatMulConstBOnly": True}  # products of two activations, as in attention, stay in float
    try:
        with warnings_unsaid():  # advice to change the graph beforehand, which is done already
            quantize_static(
                folder / FILE,
                folder / INT8,
                Reader(),
                op_types_to_quantize=_OPERATIONS,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options=options,
            )
            sessions = [onnxruntime.InferenceSession(folder / name) for name in (FILE, INT8)]
    except Exception as error:  # of any type: whatever onnxruntime meets in the graph
        said = " ".join(str(error).split())[:200]
        raise RunFailed(f"{info.name}: onnxruntime can't quantise it: {said}") from error
    wide, narrow = (
        [session.run(["pooled", "patches"], {"images": each}) for each in comparing] for session in sessions
    )
    pooled = np.array([_cosine(a[0][0], b[0][0]) for a, b in zip(wide, narrow, strict=True)])
    patches = np.array([_cosine(a[1][0], b[1][0]).mean() for a, b in zip(wide, narrow, strict=True)])
    size, before = (sum(each.stat().st_size for each in folder.glob(f"{name}*")) for name in (INT8, FILE))
    return Quantised(size, before, float(pooled.mean()), float(pooled.min()), float(patches.mean()), len(comparing))


def _images(source: Source, info: BackboneInfo) -> tuple[list[Pixels], list[Pixels]]:
    """Images to calibrate with and others to compare on, as scores see them."""
    dataset = EvalDataset(source, info.size[0])
    places = np.linspace(0, len(source) - 1, min(CALIBRATE + COMPARE, len(source))).round().astype(int)
    read = [image for place in places if (image := dataset[int(place)].image) is not None]
    if len(read) < 2:
        raise UserError(f"--int8 {source.root}: {len(read)} images can be read; expected two or more, best {CALIBRATE}")
    found = [normalise(image[None], info.mean, info.std).numpy() for image in read]
    every = max(2, len(found) // COMPARE)  # so that both lie evenly over the source
    comparing = found[::every][:COMPARE]
    calibrating = [image for number, image in enumerate(found) if number % every][:CALIBRATE]
    return calibrating, comparing


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine along the first axis."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    found: NDArray[np.float64] = (a * b).sum(0) / np.maximum(
        np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0), 1e-12
    )
    return found
