"""torch.compile: whether it is there, and what is said where it fails."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from ssl_vit.device import kind
from ssl_vit.errors import RunFailed

PAYS = 2_000_000  # images of 224 pixels in a run: a quarter of an hour on the quickest GPUs, for minutes of compiling
_CAPABLE = (7, 0)  # the oldest GPUs that Triton writes kernels for


def can_compile() -> bool:
    """Whether torch.compile can write kernels for the GPUs here, by Triton, a C compiler and Python's headers."""
    compilers = (os.environ.get("CC", "cc"), "gcc", "clang")
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    if kind() != "cuda" or find_spec("triton") is None:
        return False
    if not headers.exists() or not any(map(shutil.which, compilers)):
        return False
    return all(torch.cuda.get_device_capability(i) >= _CAPABLE for i in range(torch.cuda.device_count()))


@contextmanager
def compiling() -> Iterator[None]:
    """RunFailed, with what to change, where the compiler fails inside."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        lines = [line.strip() for line in str(error).splitlines()]
        said = next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)
        raise RunFailed(
            f"torch.compile failed ({said}); --set train.compile=false does without it, also with --resume"
        ) from error
