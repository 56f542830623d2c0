"""Bugs planted one at a time into the kernels: the judge must find each, or it would not find our own.

Each bug is one replacement in the source of a copy of the package, which then runs, interpreted, under the judge's
rules in an order that a seed decides (random_drive.py), until the judge objects.
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
    """What is replaced, once, in a module of ``vmmsim/translation``."""

    name: str
    module: str
    right: str
    wrong: str


BUGS = (
    Bug(
        "L1 hits do not move to the front: FIFO for LRU",
        "access",
        "            touch(cells, at, ways, cells[at + way])\n            if core.hierarchy:",
        "            if core.hierarchy:",
    ),
    Bug(
        "a filter forgets its last member",
        "escape_filter",
        "for page in self.members:",
        "for page in self.members[:-1]:",
    ),
    Bug(
        "LIMIT is inclusive",
        "segment",
        "or page >= core.segment_limit[dimension]",
        "or page > core.segment_limit[dimension]",
    ),
    Bug(
        "BASE is exclusive",
        "segment",
        "if page < core.segment_base[dimension] or",
        "if page <= core.segment_base[dimension] or",
    ),
    Bug(
        "a nested write sets no dirty bit",
        "walk",
        "ACCESSED | (DIRTY if is_write or core.shadow else 0)\n        if marked",
        "ACCESSED\n        if marked",
    ),
    Bug(
        "a guest write sets no dirty bit",
        "walk",
        "marked = entry | ACCESSED | (DIRTY if is_write or core.shadow else 0)\n    if",
        "marked = entry | ACCESSED\n    if",
    ),
    Bug(
        "the nested TLB serves gfns that the segment covers",
        "walk",
        "        log(core, Step.VMM_CHECK, 0, gfn, -1, hfn)\n",
        "        log(core, Step.VMM_CHECK, 0, gfn, -1, hfn)\n"
        "        nested_by_table(core, cells, pool, gfn, False, is_table)\n",
    ),
    Bug(
        "roll back forgets replaced entries",
        "journal",
        "elif what == REPLACED:",
        "elif what == REPLACED and core.fault == 0:",
    ),
    Bug(
        "roll back forgets page tables",
        "journal",
        "            pool[at] = old\n",
        "            pass\n",
    ),
    Bug(
        "roll back forgets touches",
        "journal",
        "        elif what == TOUCHED:",
        "        elif what == TOUCHED and old < 0:",
    ),
    Bug(
        "roll back begins with the first change",
        "journal",
        "range(core.journal_length - 1, -1, -1)",
        "range(core.journal_length)",
    ),
    Bug(
        "walk caches do not tell contexts apart",
        "walk_cache",
        "return space << 48 | page",
        "return 1 << 48 | page",
    ),
    Bug(
        "invalidation misses large entries",
        "invalidate",
        "marked = spaces[space] and _overlap(first, span, pages[0], pages[1])",
        "marked = spaces[space] and _overlap(first, 1, pages[0], pages[1])",
    ),
    Bug(
        "invalidation by frame misses large entries",
        "invalidate",
        "VALUE_SHIFT, span, frames[0]",
        "VALUE_SHIFT, 1, frames[0]",
    ),
    Bug(
        "a large entry is filled although a page of it escapes",
        "segment",
        "and not _any_escape(core, pool, dimension, first, pages)",
        "",
    ),
    Bug(
        "a large entry is filled beyond LIMIT",
        "segment",
        "first + pages > core.segment_limit[dimension]",
        "first + pages > core.segment_limit[dimension] + 511",
    ),
    Bug(
        "a large entry is filled with an OFFSET that is not aligned",
        "segment",
        "core.segment_offset[dimension] & (pages - 1) == 0",
        "core.segment_offset[dimension] & (pages - 2) == 0",
    ),
    Bug(
        "a page may be written if either level says so",
        "access",
        "guest & (nested | CAN_EXECUTE) & RIGHTS",
        "(guest | nested) & RIGHTS",
    ),
    Bug(
        "the walk cache is filled at the wrong level",
        "walk",
        "remember_table(core, cells, WALK_PART, core.context, gvpn, level + 1,",
        "remember_table(core, cells, WALK_PART, core.context, gvpn, level,",
    ),
    Bug(
        "a context's invalidation drops global entries",
        "engine",
        "        spaces = self._spaces(vpid=vpid, asids=(asid,))\n",
        "        spaces = self._spaces(vpid=vpid, asids=(asid, None))\n",
    ),
    Bug(
        "a page's invalidation misses global entries",
        "engine",
        "shared = self._spaces(vpid=vpid, asids=(asid, None))",
        "shared = self._spaces(vpid=vpid, asids=(asid,))",
    ),
    Bug(
        "segment translations reach the L2 TLB",
        "access",
        "to_l2 = covered == 0 or core.segment_fills_l2 != 0",
        "to_l2 = True",
    ),
    Bug(
        "the guest segment is compared after the L2 TLB",
        "access",
        "SEGMENT and not core.segment_after_l2:",
        "SEGMENT and core.segment_after_l2 > 1:",
    ),
    Bug(
        "an entry of the L2 TLB that does not permit is used",
        "access",
        "                if value & want == want:\n                    touch",
        "                if value & want >= 0:\n                    touch",
    ),
    Bug(
        "a rewalk leaves the old copy in the L2 TLB",
        "access",
        "        drop_found(core, cells, L2, gvpn)\n",
        "",
    ),
    Bug(
        "dirty walks are every rewalk",
        "access",
        "1 if why == LACKS_DIRTY else 0",
        "1",
    ),
    Bug(
        "a walk's data page is looked up in the nested TLB",
        "walk",
        "cached = is_table or core.ntlb_data",
        "cached = True",
    ),
    Bug(
        "a fill that drops an entry counts as cold",
        "tlb",
        "return gone == EMPTY",
        "return True",
    ),
    Bug(
        "false escapes are all escapes",
        "segment",
        "if not is_member(core, dimension, page):",
        "if True:",
    ),
    Bug(
        "cache lines are evicted first in, first out",
        "caches",
        "    return line_lookup_noted(",
        "    for way in range(core.part_ways[part]):\n"
        "        if cells[at + way] == line + 1:\n"
        "            return 1\n"
        "    return line_lookup_noted(",
    ),
    Bug(
        "an entry that is put when it is there loses the last way",
        "recency",
        "if held == key or held == EMPTY or place == last:\n            return",
        "if held == EMPTY or place == last:\n            return",
    ),
    Bug(
        "a counter survives an exit",
        "journal",
        "        core.count[FIRST_OF_WALK + i] = core.before[i]\n",
        "        pass\n",
    ),
    Bug(
        "the walker enters at the wrong cache",
        "caches",
        "range(core.walker_cache, 4)",
        "range(0, 4)",
    ),
    Bug(
        "Dual Direct's pair of checks counts two",
        "access",
        "        core.count[Count.BASE_BOUND_CHECKS] -= counted(core, Count.BASE_BOUND_CHECKS) - 1\n",
        "",
    ),
)

SEEDS = 30
"""Lives that a bug has to be found in; most take one or two."""


def planted(bug: Bug | None, folder: Path) -> Path:
    """Return a folder with a copy of the package and of the judge, a bug planted into it."""
    copy = shutil.copytree(PACKAGE, folder / "vmmsim", ignore=shutil.ignore_patterns("__pycache__", "data"))
    shutil.copytree(TESTS, folder / "tests" / "translation", ignore=shutil.ignore_patterns("__pycache__"))
    if bug is not None:
        place = copy / "translation" / f"{bug.module}.py"
        source = place.read_text()
        assert source.count(bug.right) == 1, f"{bug.name}: {bug.module}.py has changed; plant the bug anew"
        place.write_text(source.replace(bug.right, bug.wrong))
    return folder


@pytest.mark.skipif(INTERPRETED, reason="runs interpreted in either case: once is enough")
def test_every_planted_bug_is_found_and_the_sound_engine_passes(tmp_path: Path) -> None:
    tries = {"no bug": planted(None, tmp_path / "sound")}
    tries |= {bug.name: planted(bug, tmp_path / str(i)) for i, bug in enumerate(BUGS)}
    assert len(tries) == 1 + len(BUGS) >= 13
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [sys.executable, str(TESTS / "random_drive.py"), str(SEEDS), *(str(folder) for folder in tries.values())],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answers = dict(zip(tries, json.loads(ran.stdout), strict=True))
    assert answers.pop("no bug") == "", "the judge objects to the sound engine"
    assert not [name for name, objection in answers.items() if not objection], "these bugs were not found"
