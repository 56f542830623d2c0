"""What kernels take, named for the type checker."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Core: TypeAlias = Any
"""A scalar record of dtype ``state.CORE``; its fields are attributes, compiled and interpreted alike."""
Cells: TypeAlias = NDArray[np.int64]
"""int64[n]: the contents of one core's structures."""
Pool: TypeAlias = NDArray[np.int64]
"""int64[nodes * 512]: the page tables of the host."""
