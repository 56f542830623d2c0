"""``kernel``: compile a function, with a disk cache that is never stale. The only module that names numba.

numba's own cache stamps one source file and leaves out ``NUMBA_BOUNDSCHECK``, so that an edited callee or a checked
run would be served old machine code. Ours lies in ``<user cache>/vmmsim/kernels/<key>/``, where the key covers the
sources that kernels can come from, the versions of numba, llvmlite and Python, the options below and every
``NUMBA_*`` variable.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import llvmlite
import numba
import numpy as np
from numba.core import config as numba_config
from numba.core import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import ArrayLike, NDArray

config: Any = numba_config
"""numba sets its variables at run time, where the type checker does not see them."""

F = TypeVar("F", bound="Callable[..., Any]")

OPTIONS: Final[dict[str, Any]] = {"error_model": "numpy", "nogil": True}
"""Options of every kernel; a division by zero gives what NumPy gives and costs no test."""

INTERPRETED: Final = bool(config.DISABLE_JIT)
"""Whether ``NUMBA_DISABLE_JIT=1`` leaves kernels as the Python functions that they are."""

_KERNELS: Final = ("translation", "memory", "workloads", "addresses.py", "config.py", "jit.py", "protocols.py")
"""Folders that hold kernels, by an import contract, and modules whose constants they read: editing anything else
leaves the cache valid."""
_KEEP_DAYS: Final = 30


def user_cache() -> Path:
    """Return the folder for what may be deleted at any time: ``VMMSIM_CACHE``, or the platform's cache folder."""
    if chosen := os.environ.get("VMMSIM_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "vmmsim"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmmsim"


def _sources() -> Iterator[Path]:
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] in _KERNELS:
            yield path


def cache_key() -> str:
    """Return 16 hexadecimal digits that differ whenever compiled code could."""
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    variables = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    machine = (numba.__version__, llvmlite.__version__, sys.version, OPTIONS, variables)
    digest.update(repr(machine).encode())
    return digest.hexdigest()[:16]


def _prepare(folder: Path) -> Path | None:
    """Make ``folder`` and drop its siblings that nobody has used for a month; None if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
        if not os.access(folder, os.W_OK):
            return None
        for other in folder.parent.iterdir():
            if other.is_dir() and time.time() - other.stat().st_mtime > _KEEP_DAYS * 86400:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:
        return None
    return folder


def _cache_folder() -> Path | None:
    return None if INTERPRETED else _prepare(user_cache() / "kernels" / cache_key())


CACHE_FOLDER: Final = _cache_folder()
"""Where compiled kernels of this version lie; None if nothing can be kept."""


@contextlib.contextmanager
def _numba_cache_at(folder: Path) -> Iterator[None]:
    """numba reads its process-wide cache folder when it decorates: set it for that moment only."""
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before


def _for_all_values(dispatcher: Any) -> Any:
    """Keep numba from compiling a kernel anew for each constant that some caller passes it."""
    if not INTERPRETED:
        unliteral: Any = types.unliteral
        template = dispatcher.get_call_template

        def get_call_template(arguments: Any, keywords: Any) -> Any:
            plain = {name: unliteral(kind) for name, kind in keywords.items()}
            return template(tuple(map(unliteral, arguments)), plain)

        dispatcher.get_call_template = get_call_template
    return dispatcher


def kernel(function: F) -> F:
    """Return ``function`` compiled at its first call, from the disk cache when it holds it.

    A kernel takes scalars, NumPy arrays and one scalar record; it reads no global that changes and raises nothing.
    """
    if CACHE_FOLDER is None:
        return _for_all_values(numba.njit(forceinline=False, **OPTIONS)(function))  # type: ignore[no-any-return]
    with _numba_cache_at(CACHE_FOLDER):
        return _for_all_values(numba.njit(cache=True, forceinline=False, **OPTIONS)(function))  # type: ignore[no-any-return]


def inlined(function: F) -> F:
    """Return ``function`` for use inside kernels, merged into its callers by LLVM: for what runs at every access."""
    return _for_all_values(numba.njit(forceinline=True, **OPTIONS)(function))  # type: ignore[no-any-return]


def one_each(values: ArrayLike, count: int) -> NDArray[np.int64]:
    """Return ``values`` as int64[count] for a kernel, a single one repeated; ``ValueError`` if their number differs.

    NumPy broadcasts to read-only arrays, and a kernel would be compiled once more for these.
    """
    found = np.asarray(values, np.int64)
    if found.shape != (count,):
        found = np.broadcast_to(found, (count,)).copy()
    return np.ascontiguousarray(found)


if INTERPRETED:

    def apart() -> None:
        """Keep the kernel that calls this out of its callers' machine code."""

else:

    @intrinsic
    def apart(typing_context: Any) -> Any:
        """Keep the kernel that calls this out of its callers' machine code.

        LLVM would merge most of the engine into one function, several times over, which takes it minutes and gains
        nothing: these are the parts that wait for memory.
        """

        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            builder.function.attributes.add("noinline")
            return context.get_dummy_value()

        return types.void(), build


def is_warm() -> bool:
    """Tell whether compiled kernels of this version are in the disk cache (or none will be compiled)."""
    return INTERPRETED or (CACHE_FOLDER is not None and any(CACHE_FOLDER.rglob("*.nbc")))


CHECKED: Final = bool(config.BOUNDSCHECK)
"""Whether kernels check every index (``NUMBA_BOUNDSCHECK=1``), as the tests do."""

if INTERPRETED or CHECKED:

    @inlined
    def bare(array: Any) -> Any:
        """Return ``array`` as inner kernels take it: here, with its bounds checked, itself."""
        return array

else:

    @intrinsic
    def bare(typing_context: Any, array: Any) -> Any:
        """Return ``array`` as inner kernels take it: a bare pointer to its items.

        An array argument is seven words and two reference counts at each call; a pointer is one word and none, which
        makes the difference between a fifth of C's speed and all of it. The caller keeps the array alive.
        """
        pointer: Any = types.CPointer  # not typed
        pointer = pointer(array.dtype)

        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return context.make_array(array)(context, builder, arguments[0]).data

        return pointer(array), build
