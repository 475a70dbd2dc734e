"""Blocks that several of our families share; what timm.layers has is taken from there."""

from __future__ import annotations
