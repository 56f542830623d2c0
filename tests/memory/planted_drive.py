"""Judge copies of the package: seeded lives of a toy memory first, then the cases that need a story.

``python planted_drive.py FOLDER...`` judges the copy in each folder, interpreted, in a process of its own, and prints
a JSON list of what was objected to in each: "" for nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

SLOW = (
    "test_lives_with_compaction_and_evacuation_keep_the_book_in_order",
    "test_compaction_is_suitable_when_memory_is_splintered_but_not_short",
)
"""Cases that find nothing that no other does, and take as long as all others."""
LIVES = 6
STEPS = 40
SECONDS = 40
"""The sound allocator is done in a quarter of it."""


def judge() -> None:
    """Raise the first objection to the package that is imported."""
    import numpy as np

    from tests.memory import test_allocation, test_compaction, toy_driver
    from tests.memory.test_memory_lives import act

    for seed in range(LIVES):
        driver, random = toy_driver.ToyDriver(), np.random.default_rng(seed)
        for _ in range(STEPS):
            act(driver, random)
            driver.check()
    for module in (test_allocation, test_compaction):
        for name, case in vars(module).items():
            if name.startswith("test_") and not case.__code__.co_argcount and name not in SLOW:
                case()


def too_long(*_: object) -> None:
    """Object to a loop that does not end: that is how a broken list mostly shows."""
    raise TimeoutError(f"not done in {SECONDS} s of processor time")


def judged(folder: str, answer: Path) -> None:
    """Judge the package in ``folder``; write the objection to a file."""
    sys.path.insert(0, folder)
    import vmmsim

    assert (vmmsim.__file__ or "").startswith(folder), "the copy is not what runs"
    objection = ""
    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # not the clock on the wall: the machine may be busy
    try:
        judge()
    except BaseException:  # what pytest.raises raises is no Exception
        objection = traceback.format_exc(limit=-2)
    answer.write_text(objection)


def main(folders: list[str]) -> None:
    """Judge each folder in a process forked after the heavy imports, two at a time."""
    import numba  # noqa: F401  imported once for all
    import pytest  # noqa: F401

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
                    judged(folder, answer)
                finally:
                    os._exit(0)
        for _ in range(running):
            os.wait()
        print(json.dumps([answer.read_text() for answer in answers]))


if __name__ == "__main__":
    main(sys.argv[1:])
