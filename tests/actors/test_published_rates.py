"""What giving memory up and getting it back takes, and how often daemons look: as published, by the actors' own clock.

Sources of the expected values: *lkml* is https://lkml.iu.edu/hypermail/linux/kernel/1707.3/04371.html (2017); *HA* the
data of the HyperAlloc artifact (EuroSys 2025), inflate/inflate.dref, GiB/s; *Linux* the kernel's source.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.actors.living import GIB, MIB, boot, live, simulation, timed
from vmmsim.actors.clock import Pause, Turn
from vmmsim.jit import INTERPRETED
from vmmsim.memory.ledger import Memory

pytestmark = pytest.mark.skipif(INTERPRETED, reason="needs memories of many pages")

HUGE = 512


@pytest.fixture
def idle():
    """A guest of 8 GiB that does nothing, on a host that gives it 4 KiB pages."""
    sim = simulation(host={"memory": "12GiB", "thp": "never"})
    return sim, boot(sim, memory="8GiB", thp="never")


def gib_per_s(pages: int, ns: int) -> float:
    return pages / GIB / (ns / 1e9)


def free_in(guest) -> np.ndarray:
    book = guest.vm.guest
    gfns = np.arange(book.pages)
    return gfns[book.kinds(gfns) == 0]


def back(sim, guest, gfns: np.ndarray) -> int:
    """Let the guest touch ``gfns``; return how long the VMM's faults take."""
    stall = guest.vm.stall_ns
    before = stall["nested fault"]
    for first in range(0, gfns.size, GIB // 4):
        sim.vmm.back(guest.vm, gfns[first : first + GIB // 4])
    return stall["nested fault"] - before


def test_an_idle_guest_gives_up_7_of_8_gib_in_7168_requests_and_4_13_s(idle):
    sim, guest = idle
    held, took = timed(sim, guest.balloon.resizing(7 * GIB))
    assert held == 7 * GIB
    assert guest.balloon.requests == 7168  # Linux virtio_balloon.c: 256 pages a request; 7 GiB are 7168 MiB
    assert took / 1e9 == pytest.approx(4.126, rel=0.10)  # lkml: 4126 ms
    assert took / 7168 / 1e6 == pytest.approx(0.58, rel=0.10)  # lkml: ms a request


def test_what_was_never_touched_is_reclaimed_at_1_68_gib_per_s(idle):
    sim, guest = idle
    _, took = timed(sim, guest.balloon.resizing(6 * GIB))
    assert gib_per_s(6 * GIB, took) == pytest.approx(1.677, rel=0.10)  # HA, "Reclaim Untouched"


def test_what_was_touched_is_reclaimed_at_0_92_gib_per_s():
    sim = simulation(host={"thp": "never"})
    guest = boot(sim, memory="2GiB", thp="never")
    back(sim, guest, free_in(guest))
    _, took = timed(sim, guest.balloon.resizing(GIB))
    assert gib_per_s(GIB, took) == pytest.approx(0.917, rel=0.10)  # HA, "virtio-balloon Reclaim"


def test_deflating_takes_2_31_gib_per_s_and_with_the_faults_that_follow_0_70():
    sim = simulation(host={"thp": "never"})
    guest = boot(sim, memory="2GiB", thp="never")
    timed(sim, guest.balloon.resizing(GIB))
    held = np.flatnonzero(guest.vm.guest.frames["kind"] == 7)
    _, took = timed(sim, guest.balloon.resizing(0))
    assert gib_per_s(GIB, took) == pytest.approx(2.308, rel=0.10)  # HA, "Return"
    faults = back(sim, guest, held)
    assert gib_per_s(GIB, took + faults) == pytest.approx(0.699, rel=0.10)  # HA, "Return + Touch"


def test_memory_is_plugged_at_102_touched_at_4_0_and_unplugged_at_35_gib_per_s():
    sim = simulation(host={"memory": "6GiB"})
    guest = boot(sim, memory="2GiB")
    (start, end), plug = timed(sim, guest.hotplug.adding(2 * GIB))
    assert gib_per_s(2 * GIB, plug) == pytest.approx(101.9, rel=0.15)  # HA, virtio-mem "Return"
    faults = back(sim, guest, np.arange(start, end))
    assert gib_per_s(2 * GIB, plug + faults) == pytest.approx(4.04, rel=0.15)  # HA, virtio-mem "Return + Touch"
    said, unplug = timed(sim, guest.hotplug.removing(start, end))
    assert said == ""
    assert gib_per_s(2 * GIB, unplug) == pytest.approx(34.7, rel=0.15)  # HA, virtio-mem "Reclaim"


def test_memory_never_touched_is_unplugged_at_42_gib_per_s_and_half_of_it_in_between():
    sim = simulation(host={"memory": "6GiB"})
    guest = boot(sim, memory="2GiB")
    start, end = timed(sim, guest.hotplug.adding(GIB))[0]
    _, untouched = timed(sim, guest.hotplug.removing(start, end))
    assert gib_per_s(GIB, untouched) == pytest.approx(41.9, rel=0.15)  # HA, virtio-mem "Reclaim Untouched"
    start, end = timed(sim, guest.hotplug.adding(GIB))[0]
    back(sim, guest, np.arange(start, (start + end) // 2))
    _, half = timed(sim, guest.hotplug.removing(start, end))
    assert untouched < half < 34.7 / 41.9 * untouched * 1.5


def test_a_2_mib_fault_takes_464_us_a_4_kib_fault_3_8_and_the_large_one_a_quarter_for_each_byte():
    sim = simulation()
    guest = boot(sim, memory="1GiB")
    free = free_in(guest)
    blocks = np.unique(free >> 9)
    blocks = blocks[(guest.vm.backed[blocks] == 0) & guest.vm.whole_blocks[blocks]]
    huge = back(sim, guest, blocks[:1] << 9)
    sim.vmm.thp = False
    small = back(sim, guest, (blocks[1:2] << 9) + np.arange(HUGE)) / HUGE
    assert huge / 1e3 == pytest.approx(464, rel=0.10)  # HA: 483.6 - 19.2 us
    assert small / 1e3 == pytest.approx(3.81, rel=0.10)  # HA: 5.46 - 1.65 us
    assert small * HUGE / huge == pytest.approx(4.2, rel=0.10)


def test_a_guest_of_64_gib_has_its_watermarks_at_32_and_97_5_and_163_1_mib():
    marks = Memory(65 * GIB, name="guest", holes=[(GIB, 2 * GIB)]).watermarks
    # Linux calculate_min_free_kbytes and __setup_per_zone_wmarks: isqrt(16 * 2**26 KiB) KiB, then 0.1 % twice.
    assert [pages / MIB for pages in (marks.min, marks.low, marks.high)] == pytest.approx([32, 97.5, 163.1], abs=0.05)


def test_khugepaged_collapses_8_blocks_every_10_s_so_that_64_gib_take_11_4_hours():
    sim = simulation(host={"compaction": {"bandwidth": "1GiB/s", "proactiveness": 0}})
    workload = {"name": "gups", "footprint": "256MiB", "load": [["0s", 0.0]]}
    guest = boot(sim, memory="1GiB", workload=workload)
    region = guest.vm.process.regions[0]
    guest.os.thp = False
    guest.os.touch(np.arange(region.start, region.end), np.ones(region.pages, bool))
    guest.os.thp = True
    table = guest.vm.process.table
    assert table.leaf_counts[1] == 0
    seen = []

    def watch(sim):
        began = int(sim.env.now)
        while table.leaf_counts[0]:
            before = table.leaf_counts[1]
            yield Pause(sim.env, 10 * 10**9, Turn.MEASURE)
            seen.append(int(table.leaf_counts[1] - before))
        return int(sim.env.now) - began

    took = live(sim, watch)
    assert max(seen) == 8  # Linux mm/khugepaged.c: HPAGE_PMD_NR * 8 pages every 10 s
    assert sum(seen) == 128
    # 64 GiB by 16 MiB in 10 s are 40960 s: 11.4 hours
    assert took / 1e9 * 64 * GIB / region.pages == pytest.approx(40960)
