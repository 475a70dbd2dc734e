"""Nothing of our families is left untested."""

from __future__ import annotations

from fnmatch import fnmatch

from timm.models import model_entrypoint

from ssl_vit.backbones import families, list_backbones
from tests.backbones.families import test_isotropic, test_pyramids, test_windows

# held to timm's Swin by a test of their own, which sees all of them
ELSEWHERE = ["linmapper_*"]


def test_every_variant_is_held_to_a_number_of_parameters() -> None:
    ours = {row.name for row in list_backbones() if model_entrypoint(row.name).__module__.startswith(families.__name__)}
    counted = {*test_isotropic.PARAMETERS, *test_pyramids.PARAMETERS, *test_windows.PARAMETERS}
    assert counted <= ours
    assert [name for name in ours - counted if not any(fnmatch(name, pattern) for pattern in ELSEWHERE)] == []
