"""Equal pages found by content: the stable tree, the unstable tree, and one scan of a range of pages against both.

Two hash tables stand for Linux's two red-black trees (mm/ksm.c), which are searched by content too. The stable one
holds, for each content, a chain of nodes; a node is one shared frame and the number of its mappings. The unstable one
holds one item for each content: a page that was seen unchanged and met no equal one yet.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmmsim.jit import inlined, kernel

NONE: Final = -1
"""No key, no item, no node."""
SKIPPED: Final = 0
"""State of a page that has no frame, or is merged already, or that somebody else holds."""
FREE: Final = 1
"""State of a page that may be merged."""
PINNED: Final = 2
"""State of a page whose mapping a VMM segment pins: compared like others, and never merged."""
LEFT: Final = 0
"""Outcome: nothing to be done."""
JOINS: Final = 1
"""Outcome: joins a node."""
FOUNDS: Final = 2
"""Outcome: founds a node, together with its partner."""
REFUSED: Final = 3
"""Outcome: met an equal page, and one of the two is pinned."""
ITEM: Final = 1
"""Flag: the page was scanned, and has been there since."""
UNSTABLE: Final = 2
"""Flag: the page stands in the unstable tree, this full scan's or the last one's."""
_FACTOR: Final = 2654435761
_SMALLEST: Final = 1 << 10
_PIN: Final = 1
"""Bit of an item: its page is pinned."""

Ints: Any = NDArray[np.int32]


def item_of(vm: int, gfn: int) -> int:
    """Return the number that stands for a page of a VM in the unstable tree."""
    return vm << 32 | gfn << 1


def split_items(items: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return int64[n] each: VM numbers and gfns of items."""
    return items >> 32, items >> 1 & 0x7FFFFFFF


@inlined
def _slot(keys: NDArray[np.int32], key: int) -> int:
    """Return the slot that holds ``key``, or the empty one where it belongs."""
    at = (int(key) * _FACTOR >> 12) & (keys.size - 1)
    while keys[at] != key and keys[at] != NONE:
        at = (at + 1) & (keys.size - 1)
    return at


@kernel
def _rehash(keys: Any, values: Any, new_keys: Any, new_values: Any) -> int:
    """Copy what is alive of one table into another, larger or as large; return how many that is."""
    used = 0
    for i in range(keys.size):
        if keys[i] != NONE and values[i] != NONE:
            at = _slot(new_keys, keys[i])
            new_keys[at] = keys[i]
            new_values[at] = values[i]
            used += 1
    return used


@kernel
def _candidates(contents: Any, states: Any, seen: Any, flags: Any, keys: Any, values: Any, out: Any) -> int:
    """List slots of the unstable tree that pages of a range may meet; return how many, some perhaps twice."""
    count = 0
    for i in range(contents.size):
        if states[i] != SKIPPED and flags[i] & ITEM and seen[i] == contents[i]:
            at = _slot(keys, contents[i])
            if keys[at] != NONE and values[at] != NONE:
                out[count] = at
                count += 1
    return count


@inlined
def _node_with_room(content: int, s_keys: Any, s_heads: Any, counts: Any, following: Any, most: int) -> int:
    """Return the fullest node of a content's chain that has room for one more, as Linux's stable_node_dup does."""
    at, best = _slot(s_keys, content), NONE
    if s_keys[at] == NONE:
        return best
    node = s_heads[at]
    while node != NONE:
        if counts[node] < most and (best == NONE or counts[node] > counts[best]):
            best = node
        node = following[node]
    return best


@inlined
def _add(node: int, content: int, s_keys: Any, s_heads: Any, node_content: Any, following: Any) -> int:
    """Put a node before the others of its content; return 1 if that is a new key, else 0."""
    at, new = _slot(s_keys, content), 0
    if s_keys[at] == NONE:
        s_keys[at], s_heads[at], new = content, NONE, 1
    node_content[node] = content
    following[node] = s_heads[at]
    s_heads[at] = node
    return new


@kernel
def _scan(
    first_item: int, contents: Any, states: Any, seen: Any, flags: Any, frames: Any, most: int,
    s_keys: Any, s_heads: Any, node_content: Any, node_frame: Any, counts: Any, following: Any, spare: Any,
    spares: int, u_keys: Any, u_items: Any, outcomes: Any, nodes: Any, partners: Any, tally: Any,
) -> None:  # fmt: skip
    """Do Linux's cmp_and_merge_page for each page of a range, in order; see ``ContentTrees.scan``.

    tally  int64[4]: new items, change of pages in the unstable tree, new keys of the stable tree, of the unstable one
    """
    founded = 0
    for i in range(contents.size):
        if states[i] == SKIPPED:
            continue
        content = contents[i]
        known = flags[i] & ITEM != 0 and seen[i] == content
        if flags[i] & ITEM == 0:
            tally[0] += 1
        if flags[i] & UNSTABLE:
            tally[1] -= 1
        flags[i] = ITEM
        node = _node_with_room(content, s_keys, s_heads, counts, following, most)
        if node != NONE:
            outcomes[i] = REFUSED if states[i] == PINNED else JOINS
            if states[i] != PINNED:
                nodes[i] = node
                counts[node] += 1
            continue
        if not known:
            seen[i] = content
            continue
        mine = first_item + 2 * i + (_PIN if states[i] == PINNED else 0)
        at = _slot(u_keys, content)
        if u_keys[at] == NONE or u_items[at] == NONE or u_items[at] | _PIN == mine | _PIN:
            if u_keys[at] == NONE:
                u_keys[at] = content
                tally[3] += 1
            u_items[at] = mine
            flags[i] = ITEM | UNSTABLE
            tally[1] += 1
        elif states[i] == PINNED:
            outcomes[i] = REFUSED
        elif u_items[at] & _PIN:
            outcomes[i] = REFUSED
            u_items[at] = mine  # others that are not pinned may meet this one
            flags[i] = ITEM | UNSTABLE
            tally[1] += 1
        else:
            outcomes[i] = FOUNDS
            partners[i] = u_items[at]
            u_items[at] = NONE
            node = spare[spares - 1 - founded]
            founded += 1
            tally[2] += _add(node, content, s_keys, s_heads, node_content, following)
            node_frame[node], counts[node] = frames[i], 2
            nodes[i] = node


@kernel
def _unlink(gone: Any, s_keys: Any, s_heads: Any, node_content: Any, following: Any) -> None:
    """Take nodes out of their chains."""
    for i in range(gone.size):
        node = gone[i]
        at = _slot(s_keys, node_content[node])
        if s_heads[at] == node:
            s_heads[at] = following[node]
        else:
            before = s_heads[at]
            while following[before] != node:
                before = following[before]
            following[before] = following[node]
        node_content[node] = NONE


class ContentTrees:
    """Both trees of one host. ``most``: mappings that a node may have."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.content = np.full(_SMALLEST, NONE, np.int32)
        """int32[nodes]: what the shared frame of each node holds; NONE: no such node."""
        self.frame = np.full(_SMALLEST, NONE, np.int32)
        """int32[nodes]: the shared frame."""
        self.count = np.zeros(_SMALLEST, np.int32)
        """int32[nodes]: its mappings."""
        self._next = np.full(_SMALLEST, NONE, np.int32)
        self._spare = np.arange(_SMALLEST, dtype=np.int32)
        self._spares = _SMALLEST
        self._s_keys, self._s_heads = _table(_SMALLEST, np.int32)
        self._s_used = 0
        self._u_keys, self._u_items = _table(_SMALLEST, np.int64)
        self._u_used = 0

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return self.content.size - self._spares

    @property
    def chains(self) -> int:
        """How many contents have more than one node."""
        heads = self._s_heads[self._s_heads != NONE]
        return int(np.count_nonzero(self._next[heads] != NONE))

    def candidates(
        self, contents: NDArray[np.int32], states: NDArray[np.uint8], seen: NDArray[np.int32], flags: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
        """Return what pages of a range may meet in the unstable tree: slots, items and what they held then."""
        out = np.empty(contents.size, np.int64)
        count = _candidates(contents, states, seen, flags, self._u_keys, self._u_items, out)
        slots = np.unique(out[:count])
        return slots, self._u_items[slots], self._u_keys[slots]

    def settle(self, slots: NDArray[np.int64], valid: NDArray[np.bool_], pinned: NDArray[np.bool_]) -> None:
        """Say of candidates whether they still hold the same, and are pinned now."""
        self._u_items[slots] = np.where(valid, self._u_items[slots] & ~_PIN | pinned * _PIN, NONE)

    def scan(
        self, first_item: int, contents: NDArray[np.int32], states: NDArray[np.uint8], seen: NDArray[np.int32],
        flags: NDArray[np.uint8], frames: NDArray[np.int32],
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int64], int, int]:  # fmt: skip
        """Compare a range of pages, each in turn, with both trees; candidates were settled before.

        first_item  the item of the range's first page, whose gfns follow one another
        contents    int32[n]: what each page holds; states: uint8[n]; frames: int32[n]
        seen        int32[n], changed: what each held at the last scan; flags: uint8[n], changed

        Return outcomes uint8[n]; the node that a page joins or founds, int32[n]; the item of the other founder,
        int64[n]; how many items are new, and by how many pages the unstable tree grew. Nodes count those who are to
        join them: whoever does not, leaves by ``leave``.
        """
        size = contents.size
        self._make_room(size)
        outcomes, nodes = np.zeros(size, np.uint8), np.full(size, NONE, np.int32)
        partners, tally = np.full(size, NONE, np.int64), np.zeros(4, np.int64)
        _scan(
            first_item, contents, states, seen, flags, frames, self.most, self._s_keys, self._s_heads, self.content,
            self.frame, self.count, self._next, self._spare, self._spares, self._u_keys, self._u_items, outcomes, nodes,
            partners, tally,
        )  # fmt: skip
        self._spares -= int(np.count_nonzero(outcomes == FOUNDS))
        self._s_used += int(tally[2])
        self._u_used += int(tally[3])
        return outcomes, nodes, partners, int(tally[0]), int(tally[1])

    def leave(self, nodes: NDArray[np.int32]) -> None:
        """Note that mappings of nodes are gone, one for each time that a node is named."""
        np.subtract.at(self.count, nodes, 1)

    def remove(self, nodes: NDArray[np.int32]) -> None:
        """Take nodes, all distinct, out of the stable tree."""
        if nodes.size:
            _unlink(nodes, self._s_keys, self._s_heads, self.content, self._next)
            self.count[nodes] = 0
            self._spare[self._spares : self._spares + nodes.size] = nodes
            self._spares += int(nodes.size)

    def forget_unstable(self) -> None:
        """Begin a full scan: the unstable tree is empty."""
        self._u_keys.fill(NONE)
        self._u_used = 0

    def _make_room(self, more: int) -> None:
        """Have tables at most half full, and nodes enough, after ``more`` pages."""
        if 2 * (self._s_used + more) > self._s_keys.size:
            keys, heads = _table(_power_over(2 * (self.nodes + more)), np.int32)
            self._s_used = int(_rehash(self._s_keys, self._s_heads, keys, heads))
            self._s_keys, self._s_heads = keys, heads
        if 2 * (self._u_used + more) > self._u_keys.size:
            keys, items = _table(_power_over(4 * (self._u_used + more)), np.int64)
            self._u_used = int(_rehash(self._u_keys, self._u_items, keys, items))
            self._u_keys, self._u_items = keys, items
        if self._spares < more:
            old = self.content.size
            new = max(2 * old, old + more)
            for name, blank in (("content", NONE), ("frame", NONE), ("count", 0), ("_next", NONE)):
                grown = np.full(new, blank, np.int32)
                grown[:old] = getattr(self, name)
                setattr(self, name, grown)
            spare = np.full(new, NONE, np.int32)
            spare[: new - old], spare[new - old : new - old + self._spares] = (
                np.arange(old, new),
                self._spare[: self._spares],
            )
            self._spare, self._spares = spare, self._spares + new - old


def _table(size: int, kind: Any) -> tuple[Any, Any]:
    return np.full(size, NONE, np.int32), np.full(size, NONE, kind)


def _power_over(size: int) -> int:
    return 1 << max(size, _SMALLEST).bit_length()
