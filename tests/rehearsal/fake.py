"""A GPU that isn't there: tensors on "cuda" are fake, those on the CPU real, and every operation passes by here.

``python -m tests.rehearsal.fake '{"METHOD:BACKBONE": {SETTINGS}}'`` takes two steps and prints, as JSON, what the
second did: what waited for the device or mixed devices, by file and line, and how many kernels each part launched.
``build`` makes the stand-in for CUDA's runtime and driver under which it runs; no kernel is ever run.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import sysconfig
import types
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NO_KERNEL = {
    *("device", "size", "stride", "layout", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("detach", "alias", "lift_fresh", "_unsafe_view", "resize_", "set_"),
}
TENSORS_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}  # of torch's foreach kernels, by lists of tensors
NOT_IN_C = (  # of CUDA's headers, whose own definitions the wheels lack
    *("__device_builtin__", "__cudart_builtin__", "__builtin_align__(x)", "CUDARTAPI", "__host__", "__device__"),
    *("__inline__ inline", "__align__(x)"),
)
BLOCKS, BLOCK = 320, 65_536  # a launch of theirs takes so many blocks, of so many numbers


def build(folder: Path) -> dict[str, str] | None:
    """The environment of a process with the stand-ins; None where no compiler or no CUDA build of torch is."""
    packages = Path(sysconfig.get_paths()["purelib"])
    headers = next(packages.glob("nvidia/*/include/driver_types.h"), None)
    loader = packages / "torch" / "lib" / "libcaffe2_nvrtc.so"
    if headers is None or not loader.exists():
        return None
    (folder / "crt").mkdir()
    (folder / "crt" / "host_defines.h").write_text("".join(f"#define {name}\n" for name in NOT_IN_C))
    wanted = subprocess.run(["nm", "-D", "--undefined-only", str(loader)], capture_output=True, text=True).stdout
    calls = sorted(set(re.findall(r"\bcu[A-Z]\w*", wanted)) - {"cuDevicePrimaryCtxGetState"})
    driver = "int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) { *f = 0; *a = 1; return 0; }\n"
    (folder / "driver.c").write_text(driver + "".join(f"int {call}(void) {{ return 0; }}\n" for call in calls))
    shared = ["gcc", "-shared", "-fPIC", "-w"]
    includes = ["-I", str(folder), "-I", str(headers.parent)]
    subprocess.run([*shared, *includes, "-o", str(folder / "runtime.so"), str(HERE / "runtime.c")], check=True)
    name = ["-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1")]
    subprocess.run([*shared, *name, str(folder / "driver.c")], check=True)
    mine = {"LD_LIBRARY_PATH": str(folder), "LD_PRELOAD": str(folder / "runtime.so"), "PYTHONPATH": str(ROOT)}
    return os.environ | mine | {"OMP_NUM_THREADS": "1"}


def where() -> str:
    """The line of the package that is being run."""
    frame = sys._getframe(1)
    while frame is not None and "/ssl_vit/" not in frame.f_code.co_filename:
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return f"{frame.f_code.co_filename.rpartition('/ssl_vit/')[2]}:{frame.f_lineno}" if frame else "elsewhere"


@cache
def device_class() -> type:
    """The device, as a class: torch is imported when it is made, under the stand-ins."""
    import torch
    from torch import Tensor
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten, tree_unflatten

    for name, value in {"_lazy_init": None, "is_available": True, "device_count": 1, "is_bf16_supported": True}.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)

    class FakeCuda(TorchDispatchMode):
        """Everything on "cuda" has a shape alone; counts what an accelerator would be asked for."""

        fake = FakeTensorMode()  # one for all, as networks may be kept from one to the next

        def __init__(self) -> None:
            super().__init__()
            self.part = ""
            self.waits, self.mixed, self.copies, self.launches = Counter(), Counter(), Counter(), Counter()

        def __enter__(self) -> Any:
            torch._C._set_only_lift_cpu_tensors(True)
            return super().__enter__()

        def __exit__(self, *error: Any) -> None:
            torch._C._set_only_lift_cpu_tensors(False)
            super().__exit__(*error)

        def clear(self) -> None:
            for each in (self.waits, self.mixed, self.copies, self.launches):
                each.clear()

        def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
            flat, spec = tree_flatten((args, kwargs := kwargs or {}))
            if not any(isinstance(x, FakeTensor) or (isinstance(x, torch.device) and x.type == "cuda") for x in flat):
                return func(*args, **kwargs)
            name = func._schema.name.split("::")[1]
            if name in ("is_pinned", "_pin_memory"):
                return False
            known, result = self.answer(name, args, kwargs)
            if known:
                return result
            real = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, FakeTensor)]
            if name not in ("_to_copy", "copy_") and any(x.ndim for x in real):
                self.mixed[f"{name} at {where()}"] += 1
            args, kwargs = tree_unflatten([self.faked(x) for x in flat], spec)
            with self.fake:
                result = func(*args, **kwargs)
            view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
            if not view and name not in NO_KERNEL:
                self.launches[self.part] += launches_of(name, args)
            return result

        def faked(self, x: Any) -> Any:
            return self.fake.from_tensor(x) if isinstance(x, Tensor) and not isinstance(x, FakeTensor) else x

        def answer(self, name: str, args: Any, kwargs: Any) -> tuple[bool, Any]:
            """What an operation gives that has to wait for the device, or that has no shape beforehand."""
            first = args[0] if args else None
            if name == "_local_scalar_dense":
                return self.wait("a number", 1.0 if first.is_floating_point() else first.dtype == torch.bool or 1)
            if name in ("_to_copy", "copy_"):
                return self.copy(name, args, kwargs)
            indices = args[1] if "index" in name and len(args) > 1 and isinstance(args[1], list | tuple) else ()
            masks = [x for x in indices if isinstance(x, Tensor) and x.dtype == torch.bool]
            with self.fake:
                if name == "nonzero":
                    some = torch.empty(max(1, first.numel() // 2), first.ndim, dtype=torch.long, device="cuda")
                    return self.wait(name, some)
                if name == "bincount":
                    return self.wait(name, torch.empty(args[2], dtype=torch.long, device="cuda"))
                if masks:
                    count = max(1, masks[0].numel() // 2)
                    some = first.new_empty(count, *first.shape[masks[0].ndim :])
                    return self.wait("a boolean index", first if "put" in name else some)
            return name == "_fused_sgd_", None  # which has no shapes in torch 2.14

        def copy(self, name: str, args: Any, kwargs: Any) -> tuple[bool, Any]:
            """From the CPU: what does not say that nobody waits for it does; to the CPU: the numbers are ones."""
            target, source = (kwargs.get("device"), args[0]) if name == "_to_copy" else (args[0].device, args[1])
            late = kwargs.get("non_blocking", False) if name == "_to_copy" else args[2:3] == (True,)
            if target is not None and torch.device(target).type == "cpu":
                kind = kwargs.get("dtype") or source.dtype
                ones = torch.ones(source.shape, dtype=kind) if name == "_to_copy" else args[0].fill_(1)
                return self.wait("a copy to the CPU", ones)
            if not isinstance(source, FakeTensor):
                self.copies[where()] += 1
                if not late:
                    self.wait("a copy from the CPU", None)
            return False, None

        def wait(self, what: str, result: Any) -> tuple[bool, Any]:
            self.waits[f"{what} at {where()}"] += 1
            return True, result

    return FakeCuda


def launches_of(name: str, args: Sequence[Any]) -> int:
    """Kernels of one operation: one, but for lists of tensors."""
    if not name.startswith(("_foreach", "_fused")):
        return 1
    lists = [each for each in args if isinstance(each, list | tuple) and each and hasattr(each[0], "stride")]
    shapes = [[(x.shape, x.stride(), x.dtype) for x in each] for each in lists]
    alike = all(each == shapes[0] for each in shapes)
    if not alike and not name.startswith("_fused"):
        return len(lists[0])
    deep = len(lists) + (name.startswith("_foreach") and not name.endswith("_"))
    blocks = sum(math.ceil(each.numel() / BLOCK) for each in lists[0])
    return max(1, math.ceil(len(lists[0]) / TENSORS_A_LAUNCH[min(5, deep)]), math.ceil(blocks / BLOCKS))


class OneGpu:
    """What a step asks of Fabric, on one GPU in bfloat16."""

    world_size, global_rank = 1, 0
    strategy = types.SimpleNamespace(precision=types.SimpleNamespace())

    def __init__(self) -> None:
        import torch

        self.device = torch.device("cuda:0")

    def setup_module(self, module: Any) -> Any:
        return module

    def setup_optimizers(self, optimizer: Any) -> Any:
        return optimizer

    def no_backward_sync(self, module: Any, enabled: bool = True) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Any) -> None:
        loss.backward()

    def autocast(self) -> Any:
        import torch

        return torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False)

    def all_reduce(self, x: Any, reduce_op: str = "mean") -> Any:
        return x


def rehearse(method_name: str, backbone: str, images: int = 4, **settings: Any) -> dict[str, Any]:
    """Two steps of a run on one GPU; what the second did, and what lies on the CPU that should not."""
    import numpy as np
    import torch

    from ssl_vit.config import load_config
    from ssl_vit.data.batch import Batch
    from ssl_vit.data.crops import draw_colour
    from ssl_vit.data.params import Column
    from ssl_vit.run.facts import Facts
    from ssl_vit.run.plan import resolve_config
    from ssl_vit.run.prepare import new_method
    from ssl_vit.training.step import Learner, take_step

    flags = {"data.path": "images", "method.name": method_name, "backbone.name": backbone, "train.batch_size": images}
    flags |= {"train.precision": "bf16-mixed", "train.compile": False} | settings
    colours = lambda: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # noqa: E731
    facts = Facts(images=1_281_167, side=400, colours=colours, gpus=1, cpus=16, bfloat16=True)
    config, _ = resolve_config(load_config(flags=flags), facts)
    method, mode = new_method(config, None), device_class()()

    @contextmanager
    def clock(part: str) -> Iterator[None]:
        mode.part = part
        yield
        mode.part = "rest"

    with mode:
        method = method.to("cuda").train()
        learner, plan = Learner(OneGpu(), method, config, 1000, 100_000), method.views()  # type: ignore[arg-type]  # Fabric
        batch = Batch.empty(plan, list(range(images)))
        batch.pixels.zero_()
        rng = np.random.default_rng(0)
        for view, rows in zip(plan.views, batch.params, strict=True):
            columns = torch.tensor([draw_colour(view, rng.random(10).tolist()) for _ in range(len(rows))])
            rows.zero_()
            rows[:, : columns.shape[1]] = columns
            assert rows.shape[1] == len(Column)
        if plan.boxes:
            corners = np.sort(rng.random((images, plan.boxes, 2, 2), dtype=np.float32), axis=2)
            batch = replace(batch, boxes=torch.from_numpy(corners.reshape(images, plan.boxes, 4)))
        for number in range(2):
            mode.clear()
            take_step(learner, batch, 5000 + number, clock)  # type: ignore[arg-type]  # Batch
    tensors = [*method.named_parameters(), *method.named_buffers()]
    left = [name for name, each in tensors if each.device.type != "cuda"]
    return {"waits": mode.waits, "mixed": mode.mixed, "copies": mode.copies, "launches": mode.launches, "left": left}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for pair, chosen in json.loads(sys.argv[1]).items():
        print(json.dumps({"pair": pair, **rehearse(*pair.split(":"), **chosen)}), flush=True)
