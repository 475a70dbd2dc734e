"""Which versions are installed, by their metadata: nothing is imported, as one of them may be malicious."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import InvalidRequirement, Requirement

import ssl_vit
from ssl_vit.doctor.finding import Finding, fine, hurts, stops

# Releases that were published by somebody who had stolen their makers' keys.
MALICIOUS = {("lightning", "2.6.2"), ("lightning", "2.6.3")}
EXTRAS = {
    "numba": "numba",
    "detection": "faster-coco-eval",
    "onnx": "onnx",
    "hf": "transformers",
    "datasets": "datasets",
    "parquet": "pyarrow",
    "demo": "mlxtend",
}


def examine_install() -> Iterator[Finding]:
    """Look at Python, at ssl_vit, at each package that it needs, and at what is optional."""
    yield fine("Python", f"{platform.python_version()} on {platform.platform()}")
    try:
        needed = requires("ssl_vit") or []
    except PackageNotFoundError:
        yield hurts("ssl_vit", f"{ssl_vit.__version__}, not installed: its packages are not checked", "pip install .")
        return
    yield fine("ssl_vit", ssl_vit.__version__)
    for line in needed:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)
    missing = [extra for extra, package in EXTRAS.items() if _version(package) is None]
    words = f"not installed: {', '.join(missing)} (pip install 'ssl_vit[NAME]')" if missing else "all are installed"
    yield fine("extras", words)


def _package(requirement: Requirement) -> Finding:
    name, found = requirement.name, _version(requirement.name)
    upgrade = f"pip install --upgrade '{requirement}'"
    if found is None:
        return stops(name, f"not installed, {requirement} is needed", upgrade)
    if (name, found) in MALICIOUS:
        words = f"{found} is a malicious release: importing it runs a thief of passwords and keys"
        return stops(name, words, f"pip uninstall {name}, change every key of this machine, then {upgrade}")
    if not requirement.specifier.contains(found, prereleases=True):
        return stops(name, f"{found}, {requirement} is needed", upgrade)
    return fine(name, found)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except (PackageNotFoundError, InvalidRequirement):
        return None
