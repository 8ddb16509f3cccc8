"""JSON as every reader takes it: without infinities."""

from __future__ import annotations

import json
import math
from typing import Any


def strict_json(value: Any) -> str:
    """One line; null in place of what is not finite."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
