"""The report may fail, and the run it is of goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("ssl_vit")


@contextmanager
def harmless(what: str, told: set[str] | None = None) -> Iterator[None]:
    """Whatever goes wrong inside is said in one line, and the run goes on; told: what has been said already."""
    try:
        yield
    except Exception as error:
        if told is None or what not in told:
            why = " ".join(str(error).split()) or type(error).__name__
            log.warning("the report: %s can't be made (%s); the run goes on without it", what, why[:300])
        if told is not None:
            told.add(what)
