"""What services cost in time, from ``data/rates.toml``: the numbers that more than one actor charges."""

from __future__ import annotations

from vmmsim import rates


def rendezvous_ns(vcpus: int) -> int:
    """Return how long each vCPU stands still when all of a VM's vCPUs are kicked and wait for each other.

    One exit and entry, and a shootdown that grows with the number of receivers.
    """
    exit_ns = rates.number("vmm.exit_ns")
    base, each = rates.number("vmm.shootdown_ns"), rates.number("vmm.shootdown_receiver_ns")
    return round(exit_ns + base + each * max(vcpus - 1, 0))


def copy_ns(pages: int, bandwidth_bytes_per_second: int) -> int:
    """Return how long copying takes at a bandwidth."""
    return pages * 4096 * 1_000_000_000 // bandwidth_bytes_per_second
