"""Bugs planted one at a time into the allocator: the tests of this folder must find each.

Each bug is one replacement in the source of a copy of the package, which the judge (planted_drive.py) then runs,
interpreted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import vmmsim
from vmmsim.jit import INTERPRETED

PACKAGE = Path(vmmsim.__file__).parent
TESTS = Path(__file__).parent


class Bug(NamedTuple):
    """What is replaced, once, in a module of ``vmmsim/memory``."""

    name: str
    module: str
    right: str
    wrong: str


BUGS = (
    Bug("a block merges with its neighbour, not its buddy", "buddy",
        "        buddy = frame ^ (1 << order)\n", "        buddy = frame + (1 << order)\n"),
    Bug("a merged block begins at the upper buddy", "buddy", "        frame &= buddy\n", "        frame |= buddy\n"),
    Bug("freed blocks do not merge", "buddy", "    while order < MAX_ORDER:\n", "    while order < 0:\n"),
    Bug("merging forgets to take the buddy out of its list", "buddy",
        "        unlink(zone, words, part, buddy, order, other)\n", ""),
    Bug("merging forgets to retag the other pageblock", "buddy",
        "        if other != kind:\n            set_type(blocks, buddy, kind)\n", ""),
    Bug("leased pageblocks merge with others", "buddy",
        "        if (kind == ISOLATE) != (other == ISOLATE):\n            break\n", ""),
    Bug("claiming forgets to retag", "buddy",
        "    set_type(blocks, frame, kind)\n    zone.claims += 1\n    return True",
        "    zone.claims += 1\n    return True"),
    Bug("a whole block that is claimed keeps its type", "buddy",
        "                set_type(blocks, frame, kind)\n"
        "                set_type(blocks, frame + (1 << have) - 1, kind)\n", ""),
    Bug("only the first pageblock of a claimed block is retagged", "buddy",
        "                set_type(blocks, frame + (1 << have) - 1, kind)\n", ""),
    Bug("half a pageblock is not enough to claim it", "buddy",
        "free + alike < PAGEBLOCK // 2", "free + alike <= PAGEBLOCK // 2"),
    Bug("movable demand claims whatever the order", "buddy", "PAGEBLOCK_ORDER // 2 or kind != MOVABLE", "0"),
    Bug("fallback begins with the movable pageblocks", "buddy",
        "    if zone.blocks[part, order, first] > 0:\n        return first\n    return second if",
        "    if zone.blocks[part, order, second] > 0:\n        return second\n    return first if"),
    Bug("what is stolen comes from the largest block", "buddy",
        "        for size in range(order, MAX_ORDER + 1):\n", "        for size in range(MAX_ORDER, order - 1, -1):\n"),
    Bug("lists are first in, first out", "buddy",
        "link(zone, words, part, frame, order, kind, to_tail)\n\n",
        "link(zone, words, part, frame, order, kind, True)\n\n"),
    Bug("the tail is forgotten when the last block leaves a list", "buddy",
        "        zone.tail[part, order, kind] = before\n", "        pass\n"),
    Bug("cutting loses what lies before", "buddy", "    link_range(zone, words, blocks, head, frame)\n", ""),
    Bug("a fresh block is linked twice", "buddy", "    zone.fresh[part] -= 1\n", ""),
    Bug("allocation ignores the watermark", "ledger",
        "            floors = np.array(self.zone.watermark[0])\n", "            floors = np.zeros(2, np.int64)\n"),
    Bug("the rest of a block is not given back", "bulk",
        "        link_range(zone, words, blocks, end, frame + (1 << have))\n        for i", "        for i"),
    Bug("kernel memory enters the movable part", "bulk",
        "    if mobility(kind) == MOVABLE and zone.kernelcore < zone.frames:", "    if zone.kernelcore < zone.frames:"),
    Bug("what is free may be freed again", "bulk",
        "good = good and free and not want_used and", "good = good and free and"),
    Bug("a frame may be named twice", "bulk", "& (ISOLATED | SEEN) == mark", "& ISOLATED == mark"),
    Bug("a frame that is held may be given back", "bulk",
        "            good = mark_of(held, frame) & (ISOLATED | SEEN) == mark\n",
        "            good = mark_of(held, frame) & SEEN == mark\n"),
    Bug("isolation is lost", "bulk", "        held[WORDS * frame + STATE] |= ISOLATED << MARK_SHIFT\n\n",
        "        pass\n\n"),
    Bug("released free frames stay out of the allocator", "bulk",
        "        if kind_of(held, frame) == FREE:\n            free_block(zone, held, tags, frame, 0)\n", ""),
    Bug("a new kind is not counted", "bulk", "            count_kind(zone, tags, frame, kind, 1)\n\n", "\n"),
    Bug("free frames of a lease are anybody's", "bulk",
        "(mark > 0 or not tag_of(tags, frame) & LEASED)", "True"),
    Bug("a lease leaves free blocks in their lists", "ranges",
        "        move_blocks(zone, held, tags, block, kind, leased)\n",
        "        tags[BLOCK_WORDS * (block >> 9)] ^= LEASED\n"),
    Bug("a range search does not see leases", "ranges",
        "tags[at + TAG] & (LEASED | ABSENT) or", "tags[at + TAG] & ABSENT or"),
    Bug("a run is found before the multiple", "ranges", "begin = -(-frame // align) * align", "begin = frame"),
    Bug("memory removed stays present", "ranges",
        "        zone.present[part_of(zone, frame)] -= stop - frame\n", ""),
    Bug("compaction moves pinned frames", "scanners", "mark & (ISOLATED | PINNED) == 0", "mark & ISOLATED == 0"),
    Bug("compaction moves kernel memory", "scanners",
        "is_movable(kind_of(words, frame)) and", "kind_of(words, frame) > 1 and"),
    Bug("compaction moves frames that are held", "scanners", "mark & (ISOLATED | PINNED) == 0", "mark & PINNED == 0"),
    Bug("compaction breaks up 2 MiB allocations", "scanners", " and order < PAGEBLOCK_ORDER\n", "\n"),
    Bug("the scanners pass each other", "scanners",
        "run[FREE_BLOCK] > (run[MIGRATE] - 1) & -PAGEBLOCK:", "run[FREE_BLOCK] >= 0:"),
    Bug("compaction moves into a leased window", "scanners",
        "    return type_of(blocks, block) == MOVABLE\n", "    return True\n"),
    Bug("what is moved loses its owner", "moves", "words[source + OWNER], words",
        "NOBODY, words"),
    Bug("what is moved is not freed", "moves", "    free_block(zone, words, blocks, old, 0)\n", ""),
    Bug("a 2 MiB allocation that was broken up is still one", "moves",
        "    if not whole:\n        state &= ~(255 << ORDER_SHIFT)\n", ""),
    Bug("evacuation moves what is pinned", "evacuation",
        "        elif is_movable(kind) and not mark & PINNED:\n", "        elif is_movable(kind):\n"),
    Bug("evacuation passes over what cannot move", "evacuation", "            stucks += 1\n", ""),
    Bug("evacuation goes where it should not", "evacuation",
        "if frame == NIL or frame + (1 << order) <= avoid[0] or frame >= avoid[1]:", "if True:"),
    Bug("a run for a request goes on to the end", "compaction",
        "return Result.SUCCESS if at_least.any() else Result.CONTINUE", "return Result.CONTINUE"),
    Bug("proactive compaction stops at the high mark", "compaction",
        "policy.marks(proactiveness).low", "policy.marks(proactiveness).high"),
    Bug("the next run begins at the start", "compaction",
        "            zone.migrate_next[part, : 1 + int(self.mode)] = self._run[MIGRATE] & -PAGEBLOCK\n", ""),
)  # fmt: skip


def planted(bug: Bug | None, folder: Path) -> Path:
    """Return a folder with a copy of the package and of its judge, a bug planted into it."""
    copy = shutil.copytree(PACKAGE, folder / "vmmsim", ignore=shutil.ignore_patterns("__pycache__", "schemas"))
    shutil.copytree(TESTS, folder / "tests" / "memory", ignore=shutil.ignore_patterns("__pycache__"))
    if bug is not None:
        place = copy / "memory" / f"{bug.module}.py"
        source = place.read_text()
        assert source.count(bug.right) == 1, f"{bug.name}: {bug.module}.py has changed; plant the bug anew"
        place.write_text(source.replace(bug.right, bug.wrong))
    return folder


@pytest.mark.skipif(INTERPRETED, reason="runs interpreted in either case: once is enough")
def test_every_planted_bug_is_found_and_the_sound_allocator_passes(tmp_path: Path) -> None:
    tries = {"no bug": planted(None, tmp_path / "sound")}
    tries |= {bug.name: planted(bug, tmp_path / str(i)) for i, bug in enumerate(BUGS)}
    assert len(tries) == 1 + len(BUGS)
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [sys.executable, str(TESTS / "planted_drive.py"), *(str(folder) for folder in tries.values())],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answers = dict(zip(tries, json.loads(ran.stdout), strict=True))
    assert answers.pop("no bug") == "", "the judge objects to the sound allocator"
    assert not [name for name, objection in answers.items() if not objection], "these bugs were not found"
