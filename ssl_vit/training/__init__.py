"""How a method is trained: the loop, its step and its looks, checkpoints and health."""

from ssl_vit.training.fabric_alone import import_fabric

import_fabric()
