"""How much memory of this machine is free for a run."""

from __future__ import annotations

import os


def free_bytes() -> int:
    """Return the bytes that could be had without swapping: MemAvailable on Linux, physical memory elsewhere."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
