"""Numbers and texts with as many digits and letters as a report shows."""

from __future__ import annotations

from typing import Any

import numpy as np


def rounded(values: Any, digits: int = 6) -> Any:
    """A number, or an array as a list, to so many significant digits: more would be the machine's, not the data's.

    >>> rounded(0.123456789, 3), rounded(np.array([1234.5, 0.1]), 2)
    (0.123, [1200.0, 0.1])
    """
    if isinstance(values, (int, float)):
        return float(f"{values:.{digits}g}")
    return [float(f"{value:.{digits}g}") for value in np.asarray(values).tolist()]


def clipped(text: str, most: int) -> str:
    """A text of at most so many characters, that ends in an ellipsis where some are left out.

    >>> clipped("much to say", 6)
    'much…'
    """
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
