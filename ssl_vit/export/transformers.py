"""Hugging Face transformers gets a folder that AutoModel opens (``pip install ssl_vit[hf]``)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.names.transformers import MAPS
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.export import structure
from ssl_vit.export.target import (
    KeyPairs,
    Verified,
    frozen,
    probe,
    run_snippet,
    save_weights,
    to_library_names,
    verified,
)


def write(backbone: AdaptedBackbone, folder: Path, description: Mapping[str, Any]) -> KeyPairs:
    """Write model.safetensors, config.json and preprocessor_config.json; no code of ours is needed to read them."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            "--to transformers: it is not installed, so nothing could be verified; pip install 'ssl_vit[hf]'"
        )
    kind = _kind(backbone)
    if kind not in _CONFIGS:
        raise UserError(f"{backbone.info.name}: transformers has no {kind} among {', '.join(_CONFIGS)}; use --to timm")
    config, architecture = _CONFIGS[kind](backbone)
    mapped = to_library_names(backbone, MAPS, "transformers", kind, set())
    save_weights(mapped.state, folder)
    config |= {"model_type": kind, "architectures": [architecture], "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(
        json.dumps(_processor(backbone), indent=2) + "\n", encoding="utf-8"
    )
    return mapped.pairs


def snippet(folder: Path, backbone: AdaptedBackbone) -> str:
    """Return the Python of AutoModel and AutoImageProcessor; a ViT comes without the pooling layer, never trained."""
    path, pooler = str(Path(folder).absolute()), ", add_pooling_layer=False" if _kind(backbone) == "vit" else ""
    return "\n".join(
        [
            "from transformers import AutoImageProcessor, AutoModel",
            f"processor = AutoImageProcessor.from_pretrained({path!r})",
            f"model = AutoModel.from_pretrained({path!r}{pooler})",
        ]
    )


def verify(folder: Path, backbone: AdaptedBackbone) -> Verified:
    """Run the snippet; no key may be missing or over, and the last map and the pooled features must be ours."""
    import transformers

    consumer = f"transformers {transformers.__version__}"
    options = {"add_pooling_layer": False} if _kind(backbone) == "vit" else {}
    with _quiet(transformers.utils.logging):
        model = run_snippet(snippet(folder, backbone), consumer)["model"].eval()
        _, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True, **options)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise RunFailed(f"{consumer}: {problem.replace('_', ' ')}, first {sorted(report[problem])[0]}")
    images, ours = probe(backbone), frozen(backbone)
    with torch.inference_mode():
        pooled, patches = ours(images)
        output = model(images)
        found = _map(output.last_hidden_state, patches)
        return verified(consumer, [pooled, patches], [_pooled(output, found), found])


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Neither bars nor tables on the terminal: what goes wrong is said in our own line."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _map(hidden: Tensor, like: Tensor) -> Tensor:
    """Tokens [B, 1 + H·W, D] or a map as a map [B, D, H, W]."""
    return hidden if hidden.ndim == 4 else hidden[:, -like[0, 0].numel() :].transpose(1, 2).reshape(like.shape)


def _pooled(output: Any, last_map: Tensor) -> Tensor:
    """What transformers pools; else the class token, or without one the mean of the map."""
    pooled: Tensor | None = output.get("pooler_output")
    if pooled is not None:
        return pooled.flatten(1)
    hidden: Tensor = output.last_hidden_state
    return hidden[:, 0] if hidden.ndim == 3 else last_map.mean((-2, -1))


def _kind(backbone: AdaptedBackbone) -> str:
    """transformers' model_type; a ViT with LayerScale is what they call a Dinov2Model."""
    family, keys = backbone.info.family, backbone.model.state_dict()
    if family == "vision_transformer":
        return "dinov2" if "blocks.0.ls1.gamma" in keys else "vit"
    return {"swin_transformer": "swin"}.get(family, family)


def _vit(backbone: AdaptedBackbone) -> tuple[dict[str, Any], str]:
    its = structure.vit(backbone)
    config = {
        "image_size": list(its.size),
        "patch_size": its.patch,
        "hidden_size": its.dim,
        "num_hidden_layers": its.depth,
        "num_attention_heads": its.heads,
        "intermediate_size": its.hidden,
        "layer_norm_eps": its.eps,
        "qkv_bias": "blocks.0.attn.qkv.bias" in backbone.model.state_dict(),
    }
    return config, "ViTModel"


def _dinov2(backbone: AdaptedBackbone) -> tuple[dict[str, Any], str]:
    config, _ = _vit(backbone)
    config["mlp_ratio"] = config.pop("intermediate_size") // config["hidden_size"]
    return config | {"use_mask_token": False, "use_swiglu_ffn": False}, "Dinov2Model"


def _beit(backbone: AdaptedBackbone) -> tuple[dict[str, Any], str]:
    config, _ = _vit(backbone)
    keys = backbone.model.state_dict()
    config |= {
        "use_relative_position_bias": "blocks.0.attn.relative_position_bias_table" in keys,
        "use_absolute_position_embeddings": "pos_embed" in keys,
        "use_mean_pooling": "fc_norm.weight" in keys,
        "use_mask_token": False,
        "drop_path_rate": 0.0,
    }
    return config, "BeitModel"


def _swin(backbone: AdaptedBackbone) -> tuple[dict[str, Any], str]:
    its = structure.swin(backbone)
    config = {
        "image_size": list(its.size),
        "patch_size": its.patch,
        "embed_dim": its.dim,
        "depths": its.depths,
        "num_heads": its.heads,
        "window_size": its.window,
        "mlp_ratio": its.ratio,
        "layer_norm_eps": 1e-5,
        "drop_path_rate": 0.0,
    }
    return config, "SwinModel"


def _resnet(backbone: AdaptedBackbone) -> tuple[dict[str, Any], str]:
    its = structure.resnet(backbone)
    if its.bottleneck and (its.groups, its.width) != (1, 64):
        raise UserError(f"{backbone.info.name}: transformers' ResNet has no groups and one width; use --to torchvision")
    config = {
        "embedding_size": 64,
        "hidden_sizes": its.channels,
        "depths": its.depths,
        "layer_type": "bottleneck" if its.bottleneck else "basic",
    }
    return config, "ResNetModel"


def _convnext(backbone: AdaptedBackbone) -> tuple[dict[str, Any], str]:
    its = structure.convnext(backbone)
    config = {"hidden_sizes": its.dims, "depths": its.depths, "layer_norm_eps": 1e-6, "drop_path_rate": 0.0}
    return config, "ConvNextModel"


def _pvt_v2(backbone: AdaptedBackbone) -> tuple[dict[str, Any], str]:
    its = structure.pvt_v2(backbone)
    config = {
        "hidden_sizes": its.dims,
        "depths": its.depths,
        "num_attention_heads": its.heads,
        "mlp_ratios": its.ratios,
        "sr_ratios": its.reductions,
        "linear_attention": its.linear,
        "layer_norm_eps": 1e-6,
        "drop_path_rate": 0.0,
    }
    return config, "PvtV2Model"


_CONFIGS = {
    "vit": _vit,
    "dinov2": _dinov2,
    "beit": _beit,
    "swin": _swin,
    "resnet": _resnet,
    "convnext": _convnext,
    "pvt_v2": _pvt_v2,
}


def _processor(backbone: AdaptedBackbone) -> dict[str, Any]:
    """Resize, scale to [0, 1] and normalise as in training."""
    height, width = backbone.info.size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(backbone.info.mean),
        "image_std": list(backbone.info.std),
    }
