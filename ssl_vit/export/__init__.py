"""Weights in the layout that others load, one file per target, each proven by loading it."""
