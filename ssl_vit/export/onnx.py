"""The backbone becomes an ONNX graph with a free batch size, checked in onnxruntime (``pip install ssl_vit[onnx]``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.export.outputs import Outputs, names, trace
from ssl_vit.export.target import KeyPairs, Verified, probe, run_snippet, verified

FILE = "model.onnx"
_OPSET = 20


def write(backbone: AdaptedBackbone, folder: Path, description: Mapping[str, Any]) -> KeyPairs:
    """Write model.onnx: images [B, 3, H, W] -> pooled, patches, pyramid_0, …; B is free."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--to onnx: {package} is not installed; pip install 'ssl_vit[onnx]'")
    traced, outputs = trace(backbone), names(backbone)
    try:
        with sdpa_kernel(SDPBackend.MATH):  # the layout in memory of another kernel's result is not that of ONNX's
            program = torch.onnx.export(
                traced,
                (),
                input_names=["images"],
                output_names=outputs,
                opset_version=_OPSET,
                dynamo=True,
                optimize=False,  # that takes minutes, for a graph that onnxruntime runs as fast as the one of _tidy
                verbose=False,
            )
    except Exception as error:  # of any type: an operation that ONNX has no word for
        said = " ".join(str(_root(error)).split())[:200]
        raise RunFailed(f"{backbone.info.name}: torch {torch.__version__} can't write it as ONNX: {said}") from error
    assert program is not None  # with dynamo=True it never is
    _tidy(program)
    program.save(str(folder / FILE))
    return []


def _root(error: BaseException) -> BaseException:
    """What went wrong first: torch tells of its own steps around it."""
    return error if error.__cause__ is None else _root(error.__cause__)


def _tidy(program: torch.onnx.ONNXProgram) -> None:
    """Compute constants now, and once what pooled features and pyramid have in common."""
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    fold_constants(program.model)
    CommonSubexpressionEliminationPass()(program.model)
    remove_unused_nodes(program.model)


def snippet(folder: Path, backbone: AdaptedBackbone) -> str:
    """Return the Python that runs a session; its outputs come in the order of ``names``."""
    return "\n".join(
        [
            "import onnxruntime",
            f"session = onnxruntime.InferenceSession({str(Path(folder).absolute() / FILE)!r})",
            "names = [output.name for output in session.get_outputs()]",
            "embed = lambda images: dict(zip(names, session.run(None, {'images': images})))",
        ]
    )


def verify(folder: Path, backbone: AdaptedBackbone) -> Verified:
    """Run the snippet on a batch of another size than the one it was traced with, and compare every output."""
    import onnxruntime

    consumer = f"onnxruntime {onnxruntime.__version__}"
    embed = run_snippet(snippet(folder, backbone), consumer)["embed"]
    images = probe(backbone, batch=3)
    found = embed(images.numpy())
    ours = Outputs(backbone)
    with torch.inference_mode():
        expected = ours(images)
        theirs = [torch.from_numpy(found[name]) for name in names(backbone)]
        return verified(consumer, expected, theirs, exact=lambda: ours.double()(images.double()))
