"""GPUs, their driver, and whether the torch that is installed can use them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ssl_vit.doctor.finding import Finding, fine, hurts

_DRIVER = Path("/proc/driver/nvidia/version")
_FREE = 0.5  # share of a GPU's memory below which somebody else is at work on it


def examine_gpus() -> Iterator[Finding]:
    """Look at each GPU that torch sees; where it sees none, at whether there is one all the same."""
    import torch  # three seconds, and not where the installation is unsound

    from ssl_vit.device import UNTRIED, apples

    driver = _driver()
    if apples():
        yield fine("GPU", UNTRIED)
        return
    if not torch.cuda.is_available():
        yield _none(driver, torch.version.cuda)
        return
    yield fine("driver", f"{driver or 'version not known'}, CUDA of torch {torch.version.cuda}")
    known = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        about, subject = torch.cuda.get_device_properties(index), f"GPU {index}"
        free, total = torch.cuda.mem_get_info(index)
        words = f"{about.name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free, capability {about.major}.{about.minor}"
        if not _supported(about.major, about.minor, known):
            mend = "install a torch that was built for it: https://pytorch.org/get-started"
            yield hurts(subject, f"{words}: this torch has no kernels for it ({', '.join(known)})", mend)
        elif free < _FREE * total:
            mend = "end what runs there (nvidia-smi lists it), or choose another: CUDA_VISIBLE_DEVICES=1"
            yield hurts(subject, f"{words}: others use the rest, and large steps will not fit", mend)
        elif not torch.cuda.is_bf16_supported(including_emulation=False):
            yield fine(subject, f"{words}; no bfloat16: float32, unless with --set train.precision=16-mixed")
        else:
            yield fine(subject, f"{words}, bfloat16")


def _none(driver: str | None, built: str | None) -> Finding:
    if driver is None:
        return fine("GPU", "none; a run uses the CPU, which suits small networks and small images")
    mend = "install a torch that fits it: https://pytorch.org/get-started"
    if built is None:
        return hurts("GPU", f"NVIDIA's driver {driver} is there, and this torch was built without CUDA", mend)
    words = f"NVIDIA's driver {driver} is there, and torch (CUDA {built}) sees no GPU: hidden, or the driver is too old"
    return hurts("GPU", words, f"see nvidia-smi and CUDA_VISIBLE_DEVICES; {mend}")


def _driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none."""
    try:
        text = _DRIVER.read_text()
    except OSError:
        return None
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else "of unknown version"


def _supported(major: int, minor: int, known: list[str]) -> bool:
    """Whether torch has kernels for a compute capability: of the same major one and no newer, or can translate some.

    >>> _supported(8, 9, ["sm_80", "sm_90"]), _supported(6, 1, ["sm_80", "sm_90"])
    (True, False)
    >>> _supported(12, 0, ["sm_90", "compute_90"])
    True
    """
    for kind, digits in (name.split("_")[:2] for name in known):
        capability = divmod(int(re.sub(r"\D", "", digits)), 10)
        if capability <= (major, minor) and (kind == "compute" or capability[0] == major):
            return True
    return False
