"""Keep the memory that tensors free: a training step allocates and frees the same megabytes thousands of times."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Options of mallopt(3)."""


def keep_freed() -> bool:
    """Tell glibc to go on using freed memory instead of returning it to the kernel; False where it can't be told.

    By default every tensor above 128 KiB … 32 MiB is mapped anew, and the kernel zeroes each of its pages at the first
    touch: an elementwise product of 2 MiB then takes up to ten times as long (docs/design/0018). The price is that the
    process keeps its peak; whatever bounds memory elsewhere still holds.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mapped = mallopt(MMAP_THRESHOLD, 1 << 30) or mallopt(MMAP_THRESHOLD, 32 << 20)  # older versions allow no more
    return all([mapped, mallopt(TRIM_THRESHOLD, (1 << 31) - 1), mallopt(TOP_PAD, 64 << 20)])
