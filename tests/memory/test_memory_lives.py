"""A toy memory lives seeded lives and ones that hypothesis chooses; after each step, book, lists and dict agree."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory.toy_driver import USED, ToyDriver
from vmmsim.jit import INTERPRETED
from vmmsim.memory.frames import PAGEBLOCK, Kind

MET = (
    "take", "take short", "large take", "give back", "give back in lease", "give back block", "assign", "isolate free",
    "isolate used", "lease", "take leased", "end lease", "commit FREE", "commit BAD", "commit USER", "release",
    "retire", "add", "remove", "drop cache", "run found", "give back twice", "no run", "Busy", "ValueError",
)  # fmt: skip
"""What the seeded lives must have met, each at least twice."""


def some(driver: ToyDriver, random: np.random.Generator, count: int) -> list[int]:
    """Return a few frames: mostly in use, so that most actions are possible, sometimes any."""
    pool = driver.used() if random.random() < 0.8 else list(range(driver.pages))
    return [int(frame) for frame in random.choice(pool, min(count, len(pool)), replace=False)] if pool else []


def act(driver: ToyDriver, random: np.random.Generator) -> None:
    """Do one action, chosen and filled in by ``random``."""
    action = random.choice([take, give_back, hold, lease, settle, plug, other], p=[0.2, 0.2, 0.1, 0.1, 0.15, 0.1, 0.15])
    action(driver, random)


def take(driver: ToyDriver, random: np.random.Generator) -> None:
    kind, order = Kind(int(random.choice(USED))), int(random.choice([0, 0, 0, 1, 3, 5, 9, 10]))
    driver.take(int(random.integers(1, max(2, 1200 >> order))), order, kind, int(random.integers(4)))


def give_back(driver: ToyDriver, random: np.random.Generator) -> None:
    if random.random() < 0.8:
        driver.give_back(some(driver, random, int(random.integers(1, 600))))
    else:
        order = int(random.choice([1, 4, 9, 10]))
        driver.give_back_block(int(random.integers(driver.pages >> order)) << order, order)


def hold(driver: ToyDriver, random: np.random.Generator) -> None:
    driver.isolate(some(driver, random, int(random.integers(1, 30))) if random.random() < 0.5 else near(random))


def lease(driver: ToyDriver, random: np.random.Generator) -> None:
    leases = driver.leases
    if leases and random.random() < 0.5:
        chosen = leases[int(random.integers(len(leases)))]
        if random.random() < 0.5:
            driver.take_leased(chosen, Kind.USER)
        else:
            driver.end_lease(chosen)
    else:
        first = int(random.integers(7))
        driver.lease(first, int(random.integers(first + 1, min(first + 3, 8) + 1)))


def settle(driver: ToyDriver, random: np.random.Generator) -> None:
    tokens = sorted(set(driver.held.values()), key=lambda token: token.number)
    if not tokens:
        return
    token = tokens[int(random.integers(len(tokens)))]
    if random.random() < 0.2:
        driver.release(token)
    else:
        driver.commit(token, [None, Kind.USER, Kind.FREE, Kind.BAD][int(random.integers(4))], 2)


def plug(driver: ToyDriver, random: np.random.Generator) -> None:
    if random.random() < 0.5:
        start = int(random.integers(8)) * PAGEBLOCK
        driver.remove(start, start + int(random.choice([100, PAGEBLOCK, 2 * PAGEBLOCK])))
        return
    holes = [frame for frame in range(driver.pages) if driver.kind(frame) == Kind.HOLE]
    if holes:
        start = int(random.choice(holes)) & -64
        driver.add(max(start, holes[0]), min(start + int(random.choice([64, 512, 1024])), driver.pages))


def other(driver: ToyDriver, random: np.random.Generator) -> None:
    match int(random.integers(5)):
        case 0:
            driver.assign(some(driver, random, 20), 7)
        case 1:
            driver.retire(some(driver, random, 2))
            driver.give_back_twice(int(random.integers(driver.pages)))
        case 2:
            driver.drop_cache(int(random.integers(1, 300)))
        case _:
            driver.run(int(random.choice([1, 64, 512, 600, 1500])), int(random.choice([1, 64, 512])))


def near(random: np.random.Generator) -> list[int]:
    """Return a run of neighbours."""
    start = int(random.integers(4000))
    return list(range(start, start + int(random.integers(1, 90))))


def test_seeded_lives_keep_book_lists_and_dict_in_agreement() -> None:
    met: Counter[str] = Counter()
    for seed in range(3 if INTERPRETED else 8):
        random = np.random.default_rng(seed)
        driver = ToyDriver(kernelcore=None if seed % 3 == 2 else 2048)
        for _ in range(60 if INTERPRETED else 100):
            act(driver, random)
            driver.check()
        met += driver.met
    scarce = {action: met[action] for action in MET if met[action] < (1 if INTERPRETED else 2)}
    assert not scarce or INTERPRETED, scarce


@settings(max_examples=6 if INTERPRETED else 20)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 1), min_size=1, max_size=25))
def test_any_life_keeps_book_lists_and_dict_in_agreement(seed: int, steps: list[int]) -> None:
    driver, random = ToyDriver(), np.random.default_rng(seed)
    for _ in steps:
        act(driver, random)
        driver.check()


def test_all_memory_taken_and_given_back_is_whole_again() -> None:
    driver = ToyDriver(kernelcore=None)
    whole = driver.memory.fragmentation().nr_free
    driver.take(5000, 0, Kind.USER, 1)
    assert driver.memory.free_pages == 0
    driver.give_back(np.random.default_rng(0).permutation(driver.used()).tolist())
    driver.check()
    assert (driver.memory.fragmentation().nr_free == whole).all()
