"""What keeps a range of memory from being emptied, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmmsim.memory.frames import Kind

if TYPE_CHECKING:
    from vmmsim.memory.evacuation import Blockers


def said(blockers: Blockers, *, by: str = "another change") -> str:
    """Return what blocks: "3 kernel and 1 bad frames cannot move, the first at 0x1200"; "" if nothing does.

    by  who holds frames that are held
    """
    if blockers.frames.size:
        kinds, counts = np.unique(blockers.kinds, return_counts=True)
        parts = [
            f"{count} {Kind(kind).name.lower()}" for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True)
        ]
        first = int(blockers.frames[0])
        return f"{' and '.join(parts)} frames cannot move, the first at {first:#x}"
    if blockers.held.size:
        return f"{blockers.held.size} frames are held by {by}"
    return "there is no free memory elsewhere to move its pages to" if blockers.short else ""
