"""Segmenters give every pixel a class, on any backbone: MaskFormer, UPerNet, and FTN's feature pyramid transformer."""
