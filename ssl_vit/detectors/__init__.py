"""Detectors that predict a set of boxes: DETR, Deformable DETR and YOLOS, on any backbone."""
