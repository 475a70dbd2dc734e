"""Detectors predict boxes on any backbone: DETR, Deformable DETR, YOLOS, and torchvision's."""
