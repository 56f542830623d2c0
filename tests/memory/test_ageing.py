"""Aged memory: what is left in it, that it is always the same, and how it stands to published fleets."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest

from vmmsim.jit import INTERPRETED
from vmmsim.memory import ageing
from vmmsim.memory.ageing import HOUR_NS, Profile, age, profile
from vmmsim.memory.frames import NOBODY, Kind
from vmmsim.memory.ledger import Memory
from vmmsim.memory.survey import Column

PAGES = 1 << 13 if INTERPRETED else 1 << 18
"""A toy, or 1 GiB."""


def aged(seed: int = 0, *, ns: int = HOUR_NS, kernelcore: int | None = None, **changes: float) -> Memory:
    """Return a memory that was a server's, with ``changes`` to its profile."""
    memory = Memory(PAGES, name="aged", kernelcore=kernelcore)
    lived = attrs.evolve(profile("server"), **changes)
    if INTERPRETED:
        lived = attrs.evolve(lived, turnovers_per_hour=1.2, file_pages=40, process_pages=60)
    age(memory, ns, np.random.default_rng(seed), lived)
    return memory


def polluted(memory: Memory) -> float:
    """Return the share of pageblocks with a frame that cannot move."""
    return float((memory.survey()[:, Column.IMMOVABLE] > 0).mean())


def test_an_aged_memory_is_full_of_nobodys_pages_and_its_book_is_in_order() -> None:
    memory = aged()
    memory.check()
    assert not memory.tokens
    used = memory.frames[memory.frames["kind"] != Kind.FREE]
    assert (used["owner"] == NOBODY).all()
    assert (used["page"] == NOBODY).all()
    if not INTERPRETED:
        assert memory.free_pages < PAGES // 10
        assert memory.count(Kind.KERNEL) / PAGES == pytest.approx(profile("server").kernel_share, abs=0.02)
        assert memory.count(Kind.CACHE) > PAGES // 10


def test_same_seed_same_memory_and_another_seed_another() -> None:
    first, again, other = aged(1), aged(1), aged(2)
    assert (first.words == again.words).all()
    assert (first.blocks == again.blocks).all()
    assert (first.words != other.words).any()


def test_after_the_first_hour_time_changes_nothing() -> None:
    # dynamics.md 1.6 (5) and target 19: that uptime and free 2 MiB blocks are uncorrelated is built in, not found.
    assert (aged(3).words == aged(3, ns=90 * 24 * HOUR_NS).words).all()
    young = aged(3, ns=HOUR_NS // 10)
    assert young.free_pages > aged(3).free_pages
    fresh = aged(3, ns=0)
    assert fresh.free_pages == PAGES


def test_unmovable_pages_stay_out_of_the_movable_part() -> None:
    memory = aged(4, kernelcore=PAGES // 4)
    memory.check()
    assert not (memory.frames["kind"][PAGES // 4 :] == Kind.KERNEL).any()
    assert memory.count(Kind.KERNEL) > 0


def test_memory_in_use_is_not_aged() -> None:
    memory = Memory(4096, name="used")
    memory.take(1, kind=Kind.USER)
    with pytest.raises(ValueError, match="in use"):
        age(memory, HOUR_NS, np.random.default_rng(0), profile("host"))


def test_an_image_is_what_would_have_been_lived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_CACHE", str(tmp_path))
    lived = aged(5)
    assert not list(tmp_path.rglob("*.npy"))
    monkeypatch.setattr(ageing, "WORTH_KEEPING", 1)
    kept = aged(5)
    (image,) = tmp_path.rglob("*.npy")

    def live_again(*_: object) -> None:
        raise AssertionError("the image was not used")

    with monkeypatch.context() as patch:
        patch.setattr(ageing, "_live", live_again)
        loaded = aged(5)
    for memory in (kept, loaded):
        memory.check()
        assert (memory.words == lived.words).all()
        assert (memory.blocks == lived.blocks).all()
        assert memory.zone == lived.zone
    image.write_bytes(image.read_bytes()[:1000])
    assert (aged(5).words == lived.words).all(), "a torn image was believed"
    for seed in range(6, 12):
        aged(seed, ns=HOUR_NS // 20)
    assert len(list(tmp_path.rglob("*.npy"))) == 4
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".npy"}


def test_the_generator_is_left_as_if_it_had_been_lived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_CACHE", str(tmp_path))
    monkeypatch.setattr(ageing, "WORTH_KEEPING", 1)
    after = []
    for _ in range(2):
        random = np.random.default_rng(1)
        age(Memory(4096, name="small"), HOUR_NS // 10, random, profile("host"))
        after.append(random.random())
    assert after[0] == after[1]


@pytest.mark.parametrize("name", ["server", "host", "guest"])
def test_profiles_are_complete(name: str) -> None:
    lived = profile(name)
    assert isinstance(lived, Profile)
    assert 0 < lived.kernel_share + lived.process_share < 1


@pytest.mark.skipif(INTERPRETED, reason="needs a few million allocations")
def test_fragmentation_is_a_ratchet_that_compaction_slows() -> None:
    """What the mechanism does, whatever its numbers."""
    calm, bursting = aged(7), aged(7, burst_share=0.01)
    assert polluted(calm) > 1.2 * calm.count(Kind.KERNEL) / PAGES, "unmovable pages fill their pageblocks"
    assert polluted(bursting) > 1.5 * polluted(calm)
    assert polluted(aged(7, compacts=0, huge_share=0)) > 0.8, "without kcompactd nearly every pageblock is spoilt"


@pytest.mark.skipif(INTERPRETED, reason="needs many million allocations")
def test_a_fleet_of_aged_servers_beside_the_published_one() -> None:
    """dynamics.md, targets 18 and 20, on servers of 1 GiB with the profile as it is.

    Published: 23 % of servers have no free 2 MiB, 60 % no 32 MiB, over 90 % no 1 GiB; about 34 % of 2 MiB blocks hold
    one of about 7.6 % unmovable pages. The mechanism, with numbers that were not fitted, misses some of that
    (docs/memory.md says by how much, and why): so it is bounded here, not matched.
    """
    fleet = [aged(seed) for seed in range(12)]
    without = {
        pages: float(np.mean([memory.find_free_run(pages) < 0 for memory in fleet])) for pages in (512, 8192, 262144)
    }
    assert 0.1 < without[512] < 0.9, "free 2 MiB blocks are neither always nor never there"
    assert without[8192] >= 0.6
    assert without[262144] > 0.9
    assert 0.1 < float(np.mean([polluted(memory) for memory in fleet])) < 0.44
