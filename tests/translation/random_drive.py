"""The judge's rules in an order that a seed decides: without hypothesis's search, for many short interpreted runs.

``python random_drive.py SEEDS FOLDER...`` judges the copy of the package in each folder, in a process of its own, and
prints a JSON list of what the judge objected to in each: "" for nothing.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

STEPS = 25


def live(seed: int) -> None:
    """Live one life of the judge; raises what the judge objects to."""
    from tests.translation import test_judge as j
    from vmmsim.config import MODES

    pick = random.Random(seed)
    judge = j.Judge()
    judge.start(
        machine=machine(pick),
        hierarchy=pick.random() < 0.5,
        seed=seed,
        mode=pick.choice((*MODES.values(), MODES["dual-direct"])),
        large=pick.random() < 0.5,
        vmm_pages=pick.choice((512, 1024)),
    )
    judge.both_machines_agree()
    for _ in range(STEPS):
        step(judge, pick)
        judge.both_machines_agree()
        judge.nothing_is_stale()
    judge.teardown()


def machine(pick: random.Random) -> Any:
    """Return one of the judge's machines, one that has an L2 TLB."""
    import attrs

    from tests.translation import test_judge as j
    from vmmsim.config import Cycles, Machine, Switches

    in_l2 = pick.random() < 0.3
    return Machine(
        name="toy",
        frequency_hz=1,
        levels=pick.choice((4, 5)),
        l1_data_tlb=pick.choice((j.SPLIT_1X2, j.SMALL, j.UNIFIED)),
        l1_instruction_tlb=pick.choice((j.SMALL, j.SPLIT_1X2)),
        l2_tlb=pick.choice(j.L2S[1:]),
        nested_tlb=() if in_l2 else pick.choice(((), j.UNIFIED)),
        walk_cache=pick.choice(j.WALKS),
        nested_walk_cache=pick.choice(j.WALKS),
        caches=attrs.evolve(j.CACHES, walker_enters=pick.choice(("l1", "l2"))),
        cycles=Cycles(walk_cache_hit=2, nested_tlb_hit=3, check=5),
        switches=Switches(
            segment_at=pick.choice(("l1_miss", "l2_miss")),
            segment_fills_l2=pick.random() < 0.3,
            dd_fill=pick.choice(("4K", "largest")),
            ntlb_data=pick.random() < 0.5,
            ntlb_in_l2=in_l2,
            ept_accessed_dirty=pick.random() < 0.7,
        ),
    )


def step(judge: Any, pick: random.Random) -> None:
    """Apply one rule of the judge to random arguments."""
    from tests.translation import test_judge as j
    from vmmsim.config import MODES

    near, few = (0, 1, 2, 513, 514, 1 << 18), (0, 1, 2, 513)

    def some(among: Any, count: int, kinds: tuple[int, ...]) -> list[tuple[int, int]]:
        return [(pick.choice(among), pick.choice(kinds)) for _ in range(count)]

    def work() -> None:
        judge.work(some(near, 10, (0, 1, 1)), pick.randrange(4), pick.choice((0, 0, 1, 2)))

    def access() -> None:
        judge.access(some(j.PAGES, 8, (0, 1, 2)), pick.randrange(4), 1, pick.randrange(5), pick.choice((0, 0, 1, 2)))

    def change_mode() -> None:
        judge.change_mode(
            pick.choice((*MODES.values(), MODES["dual-direct"], MODES["guest-direct"])),
            pick.choice((0, 1, 512)),
            pick.choice((2, 3, 512, 1024, 0)),
            pick.choice((0, 1, 512)),
            pick.choice((3, 41, 512, 1024, 0)),
            set(pick.sample((0, 1, 2, 5, 41), pick.randrange(3))),
        )

    def enter_large_segments() -> None:
        mode = pick.choice(("guest-direct", "guest-direct", "vmm-direct", "dual-direct"))
        members = {5} if pick.random() < 0.2 else set()
        judge.change_mode(
            MODES[mode],
            512,
            pick.choice((300, 1024, 1024)),
            pick.choice((0, 1, 1, 512)),
            pick.choice((800, 1024)),
            members,
        )
        judge.access([(513, 0), (514, 0), (1000, 0)], 0, 0, 4, 1)

    def forget_used() -> None:
        page = pick.choice((2, 513, 513))
        judge.access([(page, 0)], 0, 0, 4, 1)
        judge.both_machines_agree()
        judge.unmap_guest(judge.current, page, 0)

    def forget_context() -> None:
        judge.access([(2, 0), (513, 0)], 0, 0, 4, 1)
        judge._both("invalidate_context", *judge.current[:2])

    def forget_used_frame() -> None:
        judge.access([(513, 0)], 0, 0, 4, 1)
        guest = judge.guests[judge.current].leaf(513)
        nested = guest and judge.nested[judge.current[2]].leaf(guest.frame)
        if guest and nested and guest.size and nested.size:
            judge.both_machines_agree()
            judge.forget_frames(pick.choice((nested.frame, guest.frame + (1 << 19))) + 300, 1)

    starts = (0, 5000, 20_000, (1 << 18) + 9, (1 << 19) + 9)
    rules = (
        work, work, work, access, access, change_mode, enter_large_segments, enter_large_segments,
        forget_used, forget_context, forget_used_frame,
        lambda: judge.come_again(pick.sample((0, 1, 2, 513, 514), 5), pick.choice((0, 2)), pick.randrange(3)),
        lambda: judge.refuse_and_grant(
            pick.random() < 0.5, pick.choice(few), pick.choice(("writable", "executable")), pick.choice((0, 2))
        ),
        lambda: judge.unmap_guest(pick.choice((j.CONTEXTS[0], *j.CONTEXTS)), pick.choice(few), pick.randrange(4)),
        lambda: judge.unmap_nested(1, pick.choice((0, 1, 512, j.TABLE_GFN, j.TABLE_GFN + 1)), pick.randrange(2)),
        lambda: judge.move(1, pick.choice(j.GFNS)),
        lambda: judge.split(pick.choice((j.CONTEXTS[0], 1)), pick.choice((512, 1 << 18))),
        lambda: judge.switch(pick.choice((j.CONTEXTS[0], *j.CONTEXTS))),
        lambda: judge.forget_frames(pick.choice(starts), pick.choice((1, 600))),
    )  # fmt: skip
    pick.choice(rules)()


def judged(folder: str, seeds: int, answer: Path) -> None:
    """Live until the judge objects to the package in ``folder``; write the objection, and the seed, to a file."""
    sys.path.insert(0, folder)
    import vmmsim
    from tests.translation.test_journal import test_an_entry_that_a_failed_walk_replaced_is_restored as rare

    assert (vmmsim.__file__ or "").startswith(folder), "the copy is not what runs"
    objection, seed = "", -1
    try:
        rare()
        for seed in range(seeds):
            live(seed)
    except Exception:
        objection = f"seed {seed}: {traceback.format_exc(limit=-2)}"
    answer.write_text(objection)


def main(seeds: int, folders: list[str]) -> None:
    """Judge each folder in a process forked after the heavy imports, two at a time."""
    import hypothesis.stateful  # noqa: F401  imported once for all
    import numba  # noqa: F401

    with tempfile.TemporaryDirectory() as place:
        answers = [Path(place, str(number)) for number in range(len(folders))]
        running = 0
        for folder, answer in zip(folders, answers, strict=True):
            if running == 2:
                os.wait()
                running -= 1
            running += 1
            if os.fork() == 0:
                try:
                    judged(folder, seeds, answer)
                finally:
                    os._exit(0)
        for _ in range(running):
            os.wait()
        print(json.dumps([answer.read_text() for answer in answers]))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
