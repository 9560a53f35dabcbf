"""Values as JSON has them."""

from __future__ import annotations

import base64
import math
from typing import Any


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it: times in ISO 8601, bytes in base64, NaN and infinities null.

    >>> jsonable({"a": [1.5, float("nan")], "b": b"x"})
    {'a': [1.5, None], 'b': 'eA=='}
    """
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
