"""How far chance alone may have moved a share or a mean. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959964  # 97.5 % quantile of the normal distribution


def wilson(right: int, images: int) -> tuple[float, float]:
    """Wilson's interval holds the share ``right / images`` with 95 % confidence: its low and high end, in percent.

    >>> [round(end, 1) for end in wilson(50, 100)]
    [40.4, 59.6]
    """
    share, z2 = right / images, Z * Z / images
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(share * (1 - share) * z2 + z2 * z2 / 4) / (1 + z2)
    return 100 * (centre - half), 100 * (centre + half)


# 97.5 % quantiles of Student's distribution for 1 to 9 degrees of freedom; from 10 on, the expansion is within 0.2 %
_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


def half_interval(values: Sequence[float]) -> float:
    """The result is half of the 95 % interval (Student's t) of the mean of two or more values."""
    freedom, z = len(values) - 1, Z
    expansion = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    t = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else expansion
    return t * float(np.std(values, ddof=1)) / math.sqrt(len(values))
