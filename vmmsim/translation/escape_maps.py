"""Escape maps: which 2 MiB blocks of a segment hold a page that its filter hits, kept in the pool of page tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmmsim.addresses import TABLE_ENTRIES
from vmmsim.translation.escape_filter import map_escapes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmmsim.translation.registers import Segment
    from vmmsim.translation.table_pool import TablePool

KEPT: Final = 64
"""Maps that are kept for segments that nobody has loaded, too."""
_BLOCKS_A_NODE: Final = 32 * TABLE_ENTRIES


class EscapeMaps:
    """The maps of a host's segments, each made once and shared by all cores that load the segment."""

    def __init__(self, pool: TablePool) -> None:
        self._pool = pool
        self._maps: dict[tuple[object, ...], tuple[int, int]] = {}

    def place(self, record: Any, dimension: int, segment: Segment, loaded: Iterable[Any]) -> int:
        """Return where the pool holds the map of a segment whose filter ``record`` has loaded.

        loaded  records of all cores: a map that one of them uses is never given back
        """
        key = (segment.base, segment.limit, segment.filter)
        if key not in self._maps:
            if len(self._maps) >= KEPT:
                self._forget_one(loaded)
            blocks = ((segment.limit + 511) >> 9) - (segment.base >> 9)
            count = -(-blocks // _BLOCKS_A_NODE)
            node = self._pool.take_run(count)
            map_escapes(record, self._pool.entries, dimension, node * TABLE_ENTRIES, segment.base, segment.limit)
            self._maps[key] = (node, count)
        return self._maps[key][0] * TABLE_ENTRIES

    def _forget_one(self, loaded: Iterable[Any]) -> None:
        """Give back the oldest map that no core has loaded."""
        in_use = {int(place) for record in loaded for place in record.escape_map}
        for key, (node, count) in self._maps.items():
            if node * TABLE_ENTRIES not in in_use:
                self._pool.give_back(np.arange(node, node + count))
                del self._maps[key]
                return
