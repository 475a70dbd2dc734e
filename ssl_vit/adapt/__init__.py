"""Going on from weights that are there: what of them is trained (LoRA), and what holds them to where they began."""
