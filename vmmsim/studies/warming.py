"""Compiling every kernel, so that the next process finds them all in the disk cache."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import vmmsim

if TYPE_CHECKING:
    from collections.abc import Iterator

_GIB: Final = 1 << 30
_MIB: Final = 1 << 20


def warm() -> None:
    """Run each kernel once: on toys by itself, and as the actors call it in a short life.

    Where there is a second processor, the kernels of the memory are compiled beside the others.
    """
    from vmmsim.memory.warm import warm as warm_memory
    from vmmsim.translation.warm import warm as warm_translation
    from vmmsim.workloads.warm import warm as warm_workloads

    with _beside("from vmmsim.memory.warm import warm; warm()"):
        warm_translation()
        warm_workloads()
    warm_memory()
    _live()


@contextlib.contextmanager
def _beside(program: str) -> Iterator[None]:
    """Run a Python program meanwhile. It only fills the cache, and what it failed to leave there is compiled here."""
    if (os.cpu_count() or 1) < 2:
        yield
        return
    root = str(Path(vmmsim.__file__).parent.parent)
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    other = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
        other.wait()
    finally:
        other.kill()
        other.wait()


def _live() -> None:
    """Live two seconds in which a segment is built past other VMs' pages, a balloon moves and a frame goes bad."""
    from vmmsim.runs import simulate

    workload = {"name": "gups", "footprint": 8 * _MIB}
    one: dict[str, Any] = {"memory": 64 * _MIB, "workload": workload}
    simulate(
        host={"memory": 512 * _MIB, "kernelcore": 64 * _MIB, "compaction": {"bandwidth": "1GiB/s"}},
        vm={
            "a": one,
            "b": {**one, "thp": "never", "boot": 10**7},
            "c": {**one, "mode": "dual-direct", "boot": 2 * 10**7},
        },
        event=[
            {"at": 10**9, "do": "shutdown", "vm": "a"},
            {"at": 1100 * 10**6, "do": "mode", "vm": "b", "mode": "vmm-direct"},
            {"at": 1500 * 10**6, "do": "fault", "fault": "bit", "vm": "c", "segment": True},
            {"at": 1600 * 10**6, "do": "balloon", "vm": "c", "target": 48 * _MIB},
            {"at": 1700 * 10**6, "do": "compact"},
        ],
        measure={"as_if": ["base"]},
        until=2 * 10**9,
        name="warm",
    )
