"""How long vmmsim takes to start, cold and warm, and how much memory it takes: measured in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import attrs

_FIRST_ACCESS: Final = "from vmmsim.studies.start_time import first_access; first_access()"
_HELP: Final = "from vmmsim.__main__ import main; import sys; sys.argv[1:] = ['--help']; main()"


@attrs.frozen(kw_only=True)
class StartTimes:
    """Wall-clock seconds from the start of a process, the best of a few; and its memory."""

    help_seconds: float
    """Until ``vmmsim --help`` has ended."""
    first_access_seconds: float
    """Until the first access is translated, kernels from the disk cache."""
    cold_first_access_seconds: float | None
    """The same with an empty cache: everything is compiled. None if it was not tried."""
    peak_bytes: int
    """Largest resident memory of a process that translated its first access."""


def first_access() -> None:
    """Translate one access, as a replay begins: machine, tables, registers, kernels. Prints the peak memory."""
    import numpy as np

    from vmmsim.config import MODES
    from vmmsim.machine_file import load_machine
    from vmmsim.studies.bench_layout import laid_out
    from vmmsim.translation.chunk import pack

    pages = np.arange(1 << 20, (1 << 20) + 64)
    laid_out(load_machine("sandy-bridge-2012"), MODES["base"], pages, hierarchy=True).run(pack(pages[:1]))
    print(_peak_bytes())


def _peak_bytes() -> int:
    """Return the most memory that this process had resident."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage says on Linux is the parent's memory if that was more.
        words = next(
            line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM")
        ).split()
        return int(words[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_start(*, cold: bool, times: int = 5) -> StartTimes:
    """Return the best start times of ``times`` processes each; compile from nothing, once, if ``cold``."""
    help_seconds = min(_run(_HELP)[0] for _ in range(times))
    warm = [_run(_FIRST_ACCESS) for _ in range(times + 1)][1:]
    cold_seconds = None
    if cold:
        with tempfile.TemporaryDirectory(prefix="vmmsim-cold-") as folder:
            cold_seconds, _ = _run(_FIRST_ACCESS, VMMSIM_CACHE=folder)
    return StartTimes(
        help_seconds=help_seconds,
        first_access_seconds=min(seconds for seconds, _ in warm),
        cold_first_access_seconds=cold_seconds,
        peak_bytes=max(int(said) for _, said in warm),
    )


def _run(code: str, **variables: str) -> tuple[float, str]:
    """Run Python code in a process of its own; return wall-clock seconds and what it printed."""
    here = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": here, **variables}
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return time.monotonic() - start, done.stdout
