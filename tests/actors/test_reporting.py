"""Free page reporting: what is reported, when, and what the host gets back. Source: Linux mm/page_reporting.c."""

from __future__ import annotations

import numpy as np
import pytest

from tests.actors.living import GIB, S, boot, live, simulation
from vmmsim.actors.clock import Pause, Turn
from vmmsim.jit import INTERPRETED
from vmmsim.memory.frames import Kind

pytestmark = pytest.mark.skipif(INTERPRETED, reason="needs memories of many pages")

HUGE = 512


@pytest.fixture
def reporter():
    """A guest of 1 GiB, resident throughout, that has told of all its free memory once."""
    sim = simulation(host={"thp": "never"}, check=True)
    guest = boot(sim, memory="1GiB", free_page_reporting=True)
    wait(sim, 3)
    return sim, guest


def wait(sim, seconds: float) -> None:
    def script(sim):
        yield Pause(sim.env, round(seconds * S), Turn.MEASURE)

    live(sim, script)


def use(sim, guest, pages: int) -> np.ndarray:
    """Let the guest take frames and touch them."""
    gfns = guest.vm.guest.take(pages, kind=Kind.CACHE)
    sim.vmm.back(guest.vm, gfns)
    return gfns


def test_the_driver_reports_all_free_memory_2_s_after_it_starts(reporter):
    _sim, guest = reporter
    first = guest.reporting.sweeps[0]
    assert first.began_ns >= 2 * S
    large = guest.vm.guest.free_pageblocks().sum() * HUGE
    assert first.pages == large
    assert first.reports == -(-first.entries // 32)
    assert first.freed_pages == 0  # none of it was ever touched


def test_nothing_below_2_mib_is_reported(reporter):
    sim, guest = reporter
    gfns = use(sim, guest, 4 * HUGE)
    resident = guest.vm.resident_pages
    odd = gfns[gfns % 512 != 0]
    guest.vm.guest.give_back(odd)  # 511 of 512 pages of each block
    wait(sim, 10)
    assert len(guest.reporting.sweeps) == 1
    assert guest.vm.resident_pages == resident


def test_a_block_of_2_mib_is_taken_back_2_s_after_it_was_freed(reporter):
    sim, guest = reporter
    gfns = use(sim, guest, 4 * HUGE)
    resident = guest.vm.resident_pages
    freed_at = int(sim.env.now)
    guest.vm.guest.give_back(gfns)
    wait(sim, 1.999)
    assert guest.vm.resident_pages == resident
    wait(sim, 0.1)
    assert guest.vm.resident_pages == resident - 4 * HUGE
    assert guest.reporting.sweeps[-1].began_ns == freed_at + 2 * S


def test_there_is_at_most_one_sweep_in_2_s_however_often_memory_is_freed(reporter):
    sim, guest = reporter
    sim.checked = False
    for _ in range(48):
        guest.vm.guest.give_back(use(sim, guest, 2 * HUGE))
        wait(sim, 0.25)
    began = [sweep.began_ns for sweep in guest.reporting.sweeps]
    assert len(began) > 5
    assert min(np.diff(began)) >= 2 * S


def test_a_report_has_32_blocks_at_most(reporter):
    sim, guest = reporter
    guest.vm.guest.give_back(use(sim, guest, 200 * HUGE))
    wait(sim, 3)
    sweep = guest.reporting.sweeps[-1]
    assert sweep.pages >= 200 * HUGE
    assert sweep.reports == -(-sweep.entries // 32)


def test_what_was_reported_is_not_reported_again_until_it_was_used(reporter):
    sim, guest = reporter
    guest.vm.guest.give_back(use(sim, guest, 8 * HUGE))
    wait(sim, 3)
    assert guest.reporting.sweeps[-1].pages == 8 * HUGE
    guest.vm.guest.give_back(use(sim, guest, HUGE))
    wait(sim, 3)
    assert guest.reporting.sweeps[-1].pages <= 2 * HUGE  # the block, and the one that it merged with


def test_nothing_is_reported_while_less_than_32_blocks_are_free_above_the_low_watermark(reporter):
    sim, guest = reporter
    memory = guest.vm.guest
    guard = memory.watermarks.low + 32 * 512
    hog = use(sim, guest, memory.free_pages - guard + HUGE // 2)
    memory.give_back(use(sim, guest, 2 * HUGE))
    before = len(guest.reporting.sweeps)
    wait(sim, 5)
    assert len(guest.reporting.sweeps) == before
    memory.give_back(hog)
    wait(sim, 3)
    assert len(guest.reporting.sweeps) == before + 1


def test_under_a_vmm_segment_the_host_gets_nothing_back(reporter):
    sim, guest = reporter
    guest.controller.want("vmm-direct")
    wait(sim, 5)
    assert guest.vm.mode == "vmm-direct"
    resident = guest.vm.resident_pages
    guest.vm.guest.give_back(use(sim, guest, 8 * HUGE))
    wait(sim, 5)
    assert guest.vm.resident_pages == resident == GIB


def test_a_block_that_is_being_reported_cannot_be_allocated(reporter):
    sim, guest = reporter
    memory = guest.vm.guest
    guest.vm.guest.give_back(use(sim, guest, 64 * HUGE))
    free = memory.free_pages
    held = []

    def watch(sim):
        for _ in range(3000):
            yield Pause(sim.env, 10**6, Turn.MEASURE)
            held.append(free - memory.free_pages)

    sim.checked = False
    live(sim, watch)
    assert max(held) in (32 * HUGE, 32 * 2 * HUGE)
    assert memory.free_pages == free
    assert not memory.tokens


def test_no_free_page_is_reported_unless_it_was_asked_for_nor_in_lifetime_detail():
    """Linux: an option of the device, off by default (VIRTIO_BALLOON_F_REPORTING). Ours: lifetime has no daemons."""
    sim = simulation(host={"thp": "never"})
    assert boot(sim, memory="256MiB").reporting is None
    lasting = simulation(run={"until": "1d", "detail": "lifetime"}, vm={"vm": {"memory": "256MiB"}})
    assert lasting.lifetime
    guest = boot(lasting, "other", memory="256MiB", free_page_reporting=True)
    wait(lasting, 60)
    assert guest.reporting is None
    assert "report" not in lasting.recorder.tables()["decisions"]["verb"].to_pylist()
