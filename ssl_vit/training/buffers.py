"""A step that is lost leaves no trace in a method's buffers: they are put back as they were before it.

A forward pass alone moves some of them: batch norm's running statistics, where one image that is not finite would stay
for good, in every later checkpoint and in the export.
"""

from __future__ import annotations

from operator import is_

import torch
from torch import Tensor, nn


class Buffers:
    """All buffers of a module, as they were when they were last kept."""

    def __init__(self, module: nn.Module) -> None:
        self._places = [(part._buffers, name) for part in module.modules() for name in part._buffers]
        self._found: list[Tensor | None] = []
        self._groups: list[tuple[list[Tensor], list[Tensor]]] = []  # of one type each: the buffers, and copies of them

    @torch.no_grad()
    def keep(self) -> None:
        """Remember them as they are; in the same memory each time."""
        now = [place.get(name) for place, name in self._places]
        if not self._found or not all(map(is_, now, self._found)):  # the first time, or another tensor took a place
            self._found, self._groups = now, []
            buffers = [each for each in now if each is not None]
            for kind in dict.fromkeys((each.dtype, each.device) for each in buffers):
                alike = [each for each in buffers if (each.dtype, each.device) == kind]
                self._groups.append((alike, [torch.empty_like(each) for each in alike]))
        for alike, copies in self._groups:
            torch._foreach_copy_(copies, alike)

    @torch.no_grad()
    def put_back(self) -> None:
        """Make them what they were, in the tensors that they were."""
        for (place, name), buffer in zip(self._places, self._found, strict=True):
            place[name] = buffer
        for alike, copies in self._groups:
            torch._foreach_copy_(alike, copies)
