"""Weights leave in the layout that others load: one file a target, each proven by loading it where that can be done."""

from __future__ import annotations

TARGETS = {  # what --to takes, and the file here that writes it; kept where importing it needs no torch
    "timm": "timm",
    "torchvision": "torchvision",
    "torchvision-detection": "torchvision_detection",
    "transformers": "transformers",
    "detectron2": "detectron2",
    "mmdet": "openmmlab",
    "rfdetr": "rfdetr",
    "onnx": "onnx",
    "torch-export": "torch_export",
    "safetensors": "safetensors",
}

REFUSED = {  # libraries that one may look for here, and why they are no target
    "ultralytics": "it gives every batch norm another eps, so that outputs differ, and is AGPL-3.0; "
    "use --to torchvision for a ResNet and see docs/exports.md",
}
