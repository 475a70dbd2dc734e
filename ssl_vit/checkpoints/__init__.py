"""Weights of others: which file it is, whose names it uses, and how it becomes one of our backbones."""
