"""Checks of what the user hands to a colormap."""

import numpy as np


def check_rgb_clip(rgb: np.ndarray) -> None:
    """Refuse anything but a non-empty uint8 clip `(t, h, w, 3)`.

    Raises:
        ValueError: Naming what was expected and what came.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 4 or rgb.shape[3] != 3 or rgb.size == 0:
        raise ValueError(f"rgb: expected uint8 (t, h, w, 3), got {rgb.dtype} {rgb.shape}")


def check_entity_ids(entity_ids: np.ndarray) -> int:
    """Refuse anything but a non-empty integer clip `(t, h, w)` of ids >= 0.

    Returns:
        The largest id.

    Raises:
        ValueError: Naming what was expected and what came.
    """
    kind_ok = np.issubdtype(entity_ids.dtype, np.integer)
    if not kind_ok or entity_ids.ndim != 3 or entity_ids.size == 0:
        raise ValueError(
            f"entity_ids: expected integers (t, h, w), got {entity_ids.dtype} {entity_ids.shape}"
        )
    if entity_ids.dtype.kind == "i" and (lowest := int(entity_ids.min())) < 0:
        raise ValueError(f"entity_ids: expected ids >= 0, got {lowest}")
    return int(entity_ids.max())
