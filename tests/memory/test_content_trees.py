"""The compiled scan of both trees against the rules told with dicts and lists, on contents few enough to collide."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vmmsim.memory.content_trees import (
    FOUNDS,
    FREE,
    ITEM,
    JOINS,
    LEFT,
    NONE,
    PINNED,
    REFUSED,
    SKIPPED,
    ContentTrees,
    item_of,
    split_items,
)

MOST = 3


class Rules:
    """mm/ksm.c's cmp_and_merge_page, slowly: nodes are lists of gfns."""

    def __init__(self) -> None:
        self.stable: dict[int, list[list[int]]] = {}
        self.unstable: dict[int, tuple[int, bool]] = {}
        self.seen: dict[int, int] = {}

    def scan(  # noqa: PLR0911  one a rule
        self, gfn: int, content: int, state: int
    ) -> tuple[int, list[int] | None, int]:
        """Return outcome, node and partner."""
        if state == SKIPPED:
            return LEFT, None, NONE
        room = [node for node in reversed(self.stable.get(content, [])) if len(node) < MOST]
        known = self.seen.get(gfn) == content
        if room:
            if state == PINNED:
                return REFUSED, None, NONE
            node = max(room, key=len)
            node.append(gfn)
            return JOINS, node, NONE
        if not known:
            self.seen[gfn] = content
            return LEFT, None, NONE
        if content not in self.unstable:
            self.unstable[content] = (gfn, state == PINNED)
            return LEFT, None, NONE
        other, pinned = self.unstable[content]
        if state == PINNED:
            return REFUSED, None, NONE
        if pinned:
            self.unstable[content] = (gfn, False)
            return REFUSED, None, NONE
        del self.unstable[content]
        node = [other, gfn]
        self.stable.setdefault(content, []).append(node)
        return FOUNDS, node, other


@pytest.mark.parametrize("seed", range(5))
def test_every_page_comes_to_what_the_rules_say(seed: int) -> None:
    random, met = np.random.default_rng(seed), Counter[int]()
    trees, rules, size = ContentTrees(MOST), Rules(), 60
    contents = random.integers(0, 12, size).astype(np.int32)
    seen, flags, merged = np.full(size, NONE, np.int32), np.zeros(size, np.uint8), np.zeros(size, np.bool_)
    frames = np.arange(size, dtype=np.int32) + 1000
    number: dict[int, list[int]] = {}
    for _ in range(30):
        changed = random.random(size) < 0.1
        for gfn in np.flatnonzero(changed & merged).tolist():
            node = next(n for n, gfns in number.items() if gfn in gfns)
            number[node].remove(gfn)
            trees.leave(np.array([node], np.int32))
            if not number[node]:
                trees.remove(np.array([node], np.int32))
                chain = rules.stable[int(contents[gfn])]
                chain[:] = [one for one in chain if one is not number[node]]
                del number[node]
        merged &= ~changed
        contents[changed] = random.integers(0, 12, int(changed.sum()))
        states = np.where(merged, SKIPPED, random.choice([FREE, FREE, FREE, PINNED], size)).astype(np.uint8)
        trees.forget_unstable()
        rules.unstable.clear()
        outcomes, nodes, partners, _, _ = trees.scan(item_of(7, 0), contents, states, seen, flags, frames)
        for gfn in range(size):
            outcome, node, other = rules.scan(gfn, int(contents[gfn]), int(states[gfn]))
            assert outcomes[gfn] == outcome
            met[outcome] += 1
            if node is not None:
                at = int(nodes[gfn])
                assert number.setdefault(at, node) is node
                merged[[gfn, other] if other != NONE else [gfn]] = True
            if outcome == FOUNDS:
                assert split_items(partners[gfn : gfn + 1]) == (7, other)
                assert trees.frame[nodes[gfn]] == frames[gfn]
        assert trees.nodes == len(number)
        assert {n: int(trees.count[n]) for n in number} == {n: len(gfns) for n, gfns in number.items()}
        assert trees.chains == sum(len(chain) > 1 for chain in rules.stable.values())
    assert min(met[outcome] for outcome in (JOINS, FOUNDS, REFUSED)) > 20, met


def test_tables_grow_and_forget_nothing() -> None:
    trees, size = ContentTrees(256), 5000
    contents = np.repeat(np.arange(size // 2, dtype=np.int32) * 977, 2)
    seen, flags = contents.copy(), np.full(size, ITEM, np.uint8)
    states, frames = np.full(size, FREE, np.uint8), np.arange(size, dtype=np.int32)
    for first in range(0, size, 500):
        span = slice(first, first + 500)
        outcomes = trees.scan(item_of(1, first), contents[span], states[span], seen[span], flags[span], frames[span])[0]
        assert outcomes.tolist() == [LEFT, FOUNDS] * 250
    assert trees.nodes == size // 2
    assert (trees.scan(item_of(2, 0), contents, states, seen, flags, frames)[0] == JOINS).all()
