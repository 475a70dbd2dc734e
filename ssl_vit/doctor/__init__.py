"""What would hurt a run here, found out in seconds and before it starts: the doctor looks at everything around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ssl_vit.data.dataset_name import Images
from ssl_vit.doctor.disk import examine_disk
from ssl_vit.doctor.finding import Finding, fine
from ssl_vit.doctor.gpu import examine_gpus
from ssl_vit.doctor.images import examine_images
from ssl_vit.doctor.install import examine_install
from ssl_vit.doctor.machine import examine_machine

__all__ = ["Finding", "doctor"]


def doctor(data: Images | None = None, out: Path | str = ".", *, outside_links: bool = False) -> list[Finding]:
    """Look at the installation, the machine, the folder for runs and the images, and say what would hurt a run.

    data: images as for :func:`ssl_vit.pretrain`; without any nothing is said of them. out: where runs are going to be
    kept; a file of 64 MB is written there to see how quick it is, and deleted. Nothing else is changed. outside_links:
    whether links that lead out of a folder are followed.
    """
    return list(_findings(data, Path(out), outside_links))


def _findings(data: Images | None, out: Path, outside_links: bool) -> Iterator[Finding]:
    sound = True
    for finding in examine_install():
        sound &= finding.level != "stops a run"
        yield finding
    if sound:  # nothing is imported from an installation that isn't
        yield from examine_gpus()
    yield from examine_machine()
    yield from examine_disk(out)
    if data is None:
        yield fine("images", "none named, so not looked at: ssl-vit doctor DATA")
    elif sound:
        yield from examine_images(data, outside_links)
