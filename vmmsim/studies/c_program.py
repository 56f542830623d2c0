"""``benchmarks/translate.c``, the engine as a C program: found in a checkout, compiled here, called on our arrays.

The header that the C program includes is written from ``state.CORE``, so that both sides hold the same record.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmmsim.errors import BadInput
from vmmsim.translation.state import CORE, Count

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

FLAGS: Final = ("-O3", "-march=native", "-std=c11", "-shared", "-fPIC")


def find_source() -> Path | None:
    """Return the C program of this checkout; None where vmmsim is installed without it."""
    source = Path(__file__).parents[2] / "benchmarks" / "translate.c"
    return source if source.exists() else None


def find_compiler() -> str | None:
    """Return the C compiler: ``$CC``, cc, gcc or clang, the first that is there."""
    return next(
        (path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (path := shutil.which(name))), None
    )


def header() -> str:
    """Return core.h: ``struct core``, field by field as in ``state.CORE``, and the numbers of the counters."""
    lines = ["#include <stdint.h>", "enum {"]
    lines += [f"    {count.name} = {int(count)}," for count in Count]
    lines += ["};", "struct core {"]
    assert CORE.names is not None
    for name in CORE.names:
        shape = CORE[name].shape
        lines.append(f"    int64_t {name}{''.join(f'[{length}]' for length in shape)};")
    return "\n".join([*lines, "};", ""])


class CProgram:
    """The C program, compiled and loaded."""

    def __init__(self, source: Path, compiler: str) -> None:
        """Compile ``source`` with ``compiler`` into a folder of its own, and load it."""
        with tempfile.TemporaryDirectory(prefix="vmmsim-bench-") as folder:
            Path(folder, "core.h").write_text(header(), encoding="utf-8")
            library = Path(folder, "translate.so")
            command = [compiler, *FLAGS, f"-I{folder}", str(source), "-o", str(library)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BadInput(f"{compiler} cannot compile it:\n{done.stderr.strip()}", file=str(source))
            self._translate: Callable[..., int] = ctypes.CDLL(str(library)).translate
        self._translate.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64]
        self._translate.restype = ctypes.c_int64
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
        self.compiler = f"{version.splitlines()[0] if version else compiler}, {' '.join(FLAGS[:2])}"

    def translate(
        self, record: Any, cells: NDArray[np.int64], pool: NDArray[np.int64], chunk: NDArray[np.int64]
    ) -> int:
        """Translate ``chunk`` as ``run`` does; return how many accesses did not fault before the first that did."""
        places = (record.__array_interface__["data"][0], cells.ctypes.data, pool.ctypes.data, chunk.ctypes.data)
        return self._translate(*places, chunk.size)
