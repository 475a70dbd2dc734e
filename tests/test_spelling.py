"""Advice on a word that isn't one of the names."""

from __future__ import annotations

from ssl_vit.spelling import did_you_mean


def test_of_few_names_the_near_one_or_all() -> None:
    assert did_you_mean("snwo", ["snow", "fog"]) == "did you mean snow?"
    assert did_you_mean("mud", ["snow", "fog"]) == "known: snow, fog"


def test_of_many_names_the_nearest_however_far() -> None:
    names = [f"model{n}" for n in range(100)] + ["mud_larch"]
    assert did_you_mean("mud", names) == "did you mean mud_larch?"
    assert did_you_mean("model", names, 3).count("model") == 3
