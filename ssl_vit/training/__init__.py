"""How a method is trained: one LightningModule, its callbacks, checkpoints and health."""
