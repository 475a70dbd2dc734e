"""DINO put together from Lightly's parts, as the loop in its documentation does: a forward pass a view."""

from __future__ import annotations

import copy

import recipe
import timm
import torch
from clock import Clock, measure
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn


class Branch(nn.Module):
    """A backbone and its head, student or teacher."""

    def __init__(self, backbone: nn.Module, freeze: int) -> None:
        super().__init__()
        self.backbone = backbone
        widths = (backbone.num_features, recipe.HIDDEN, recipe.BOTTLENECK, recipe.PROTOTYPES)
        self.head = DINOProjectionHead(*widths, freeze_last_layer=freeze)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] to logits [B, K]."""
        logits: Tensor = self.head(self.backbone(x).flatten(start_dim=1))
        return logits


def train(clock: Clock, what: str, precision: str, photos: str) -> None:
    """Until the clock has seen enough."""
    settings = {"num_classes": 0, "dynamic_img_size": True, "drop_path_rate": recipe.DROP_PATH}
    backbone = timm.create_model(recipe.BACKBONE, **settings)
    student, teacher = Branch(backbone, 0), Branch(copy.deepcopy(backbone), -1)
    deactivate_requires_grad(teacher)
    views = recipe.views()
    criterion = DINOLoss(output_dim=recipe.PROTOTYPES, warmup_teacher_temp=recipe.TEMP, teacher_temp=recipe.TEMP)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.LR, weight_decay=recipe.DECAY)
    while True:
        clock.tick()
        update_momentum(student.backbone, teacher.backbone, m=recipe.MOMENTUM)
        update_momentum(student.head, teacher.head, m=recipe.MOMENTUM)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            with torch.no_grad():
                wanted = [teacher(view) for view in views[:2]]
            loss = criterion(wanted, [student(view) for view in views], epoch=0)
        clock.see(loss)
        loss.backward()
        student.head.cancel_last_layer_gradients(current_epoch=0)
        nn.utils.clip_grad_norm_(trained, recipe.CLIP)
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    measure(train)
