"""Self-supervised pretraining for any vision backbone: pretrain, see whether it learns, score, export."""

__version__ = "0.1.0"
