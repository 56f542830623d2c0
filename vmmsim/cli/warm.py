"""``vmmsim warm``: compile everything now, so that no later command has to."""

from __future__ import annotations

import time

from vmmsim.cli import output


def warm() -> None:
    """Compile all kernels, and say where the machine code is kept."""
    from vmmsim import jit
    from vmmsim.studies.warming import warm as warm_all

    started = time.monotonic()
    warm_all()
    where = jit.CACHE_FOLDER or "nowhere: the cache folder cannot be written (VMMSIM_CACHE names another)"
    output.say(f"warm after {time.monotonic() - started:.1f} s; kernels are kept in {where}")
