"""Figures as files hold them: JSON has no word for what is not a number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def blank_nan(found: Any) -> Any:
    """The same dicts and lists, with None for numbers that are not finite.

    >>> blank_nan({"dice": (0.5, float("nan"))})
    {'dice': [0.5, None]}
    """
    if isinstance(found, Mapping):
        return {key: blank_nan(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [blank_nan(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found
