"""Training in bfloat16 on a CPU: some of torch's functions in ways of our own, quicker or from less memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ssl_vit.training.cpu.attention import attend
from ssl_vit.training.cpu.remade import gelu, linear

OURS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.scaled_dot_product_attention: attend,
    F.gelu: gelu,
    F.linear: linear,
}


def lean_bfloat16(device: torch.device, lean: bool = True) -> AbstractContextManager[object]:
    """Inside, on a CPU in bfloat16, the functions of `OURS` are computed in our ways; elsewhere nothing changes.

    lean: the switch, ``train.lean_cpu``.
    """
    if lean and device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return OurWays()
    return nullcontext()


class OurWays(TorchFunctionMode):
    """Inside, the functions of `OURS` are ours, whichever model calls them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every call of torch passes here; those that are not in the table are left alone."""
        return OURS.get(func, func)(*args, **(kwargs or {}))
