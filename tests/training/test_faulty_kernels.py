"""Networks are kept from the CPU kernel that writes past its memory, and nothing else about them changes."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn

from ssl_vit.backbones import create_backbone
from ssl_vit.methods.method import Progress
from ssl_vit.run.prepare import build_method
from ssl_vit.training.cpu.faulty_kernels import StridedPointwise, avoid_faulty_kernels
from tests.runs import process_of
from tests.test_families_train import resolved

IMAGES = 8  # with fewer the kernel stays inside its memory by chance


def step_of_fastvit() -> None:
    """Abort, where a network is not kept from the kernel; leave without tidying up, so that only the step counts."""
    torch.set_num_threads(1)
    method = build_method(resolved("dino", "fastvit"))
    views = [torch.randn(view.count * IMAGES, 3, view.size, view.size) for view in method.views().views]
    batch = [view.to(memory_format=torch.channels_last) for view in views]
    for step in range(3):
        method(batch, Progress(step, 10, 5)).loss.backward()
    os._exit(0)


def test_a_network_whose_gradient_aborts_is_trained():
    process = process_of(step_of_fastvit)
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize("stride", [(2, 2), (1, 3)])
@pytest.mark.parametrize("format_", [torch.contiguous_format, torch.channels_last])
def test_values_are_equal_and_gradients_right(channels, stride, format_):
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 8, 1, stride=stride)
    kept = copy.deepcopy(plain)
    avoid_faulty_kernels(kept)
    assert type(kept) is StridedPointwise
    x = torch.randn(2, channels, 17, 12).to(memory_format=format_)
    out = kept(x)
    with torch.no_grad():  # going back could abort
        torch.testing.assert_close(out, plain(x), rtol=1e-5, atol=1e-6)
    out.square().sum().backward()
    exact = copy.deepcopy(plain).double()  # no kernel of that library takes float64
    exact(x.double()).square().sum().backward()
    torch.testing.assert_close(kept.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept.bias.grad.double(), exact.bias.grad, rtol=1e-4, atol=1e-4)
    assert kept.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(3, 8, 3, stride=2),
        nn.Conv2d(16, 8, 1, stride=2),
        nn.Conv2d(4, 4, 1, stride=2, groups=4),
        nn.Conv2d(3, 8, 1, stride=2, padding=1),
    ],
    ids=["no stride", "3 x 3", "a block", "grouped", "padded"],
)
def test_other_convolutions_stay(conv):
    avoid_faulty_kernels(conv)
    assert type(conv) is nn.Conv2d


def test_one_layer_of_fastvit_is_changed():
    backbone = create_backbone("fastvit_t8", image_size=64)
    avoid_faulty_kernels(backbone)
    assert [name for name, module in backbone.named_modules() if isinstance(module, StridedPointwise)] == [
        "model.stem.0.conv_scale.conv"
    ]
