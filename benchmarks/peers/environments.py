"""Environments of the peers that are on PyPI: one each, pinned, made once, with the torch that runs this."""

from __future__ import annotations

import site
import subprocess
import sys
from pathlib import Path

PINNED = {
    "lightly-train": ["lightly-train==0.18.0", "lightly==1.6.0"],
    "stable-pretraining": ["stable-pretraining==0.1.8"],
}


def interpreter(name: str, folder: Path) -> Path:
    """The Python of this environment in ``folder``; installs it if it is not there.

    What this interpreter has, torch above all, is seen from there, so that all are timed with the same libraries.
    """
    place, ready = folder / name, folder / name / "ready"
    python, pins = place / "bin" / "python", "\n".join(PINNED[name])
    if ready.exists() and ready.read_text() == pins:
        return python
    print(f"installing {', '.join(PINNED[name])} into {place}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
    [packages] = place.glob("lib/python*/site-packages")
    (packages / "parent.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PINNED[name]], check=True)
    ready.write_text(pins)
    return python
