"""Lightning's Fabric is imported alone: its Trainer and torchmetrics, which no run uses, are a third of the start."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any


def import_fabric() -> None:
    """Import ``lightning.fabric`` without the rest of ``lightning``, which comes when something of it is asked for.

    Nothing happens where ``lightning`` is imported already, or where this version of it can't do without the rest.
    """
    spec = importlib.util.find_spec("lightning")
    if "lightning" in sys.modules or spec is None or spec.loader is None:
        return
    loader, package, metrics = spec.loader, importlib.util.module_from_spec(spec), ModuleType("torchmetrics")

    def rest(name: str) -> Any:
        """Whoever asks for an attribute of the package gets it, the whole package imported."""
        if name.startswith("__") and name != "__version__":
            raise AttributeError(f"module 'lightning' has no attribute {name!r}")
        del package.__dict__["__getattr__"]
        loader.exec_module(package)
        return getattr(package, name)

    sys.modules["lightning"] = package
    try:
        if "torchmetrics" not in sys.modules:
            metrics.__dict__["__version__"] = version("torchmetrics")  # Fabric compares it, and reads no more
            sys.modules["torchmetrics"] = metrics
        importlib.import_module("lightning.fabric")
        package.__dict__["__getattr__"] = rest
    except (ImportError, AttributeError, PackageNotFoundError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "lightning"]:
            del sys.modules[name]  # it is imported whole, as ever
    finally:
        if sys.modules.get("torchmetrics") is metrics:
            del sys.modules["torchmetrics"]
