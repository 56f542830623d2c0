"""Prices of a miss: what a hierarchy run of the same accesses counts, once for each workload and mix of leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.actors.sampled import DATA, PAGE, Phases, SmallVm
from vmmsim.actors.calibration import Calibrations, leaf_mix, native_twin, packed
from vmmsim.config import MODES
from vmmsim.translation.page_table import ACCESSED, DIRTY, WRITABLE
from vmmsim.translation.state import Exit

STREAM = Phases(3)


def dirty(vm: SmallVm) -> SmallVm:
    """Set all accessed and dirty bits, so that a core that sets them finds what a shadow takes for granted."""
    for table in (vm.guest, vm.nested):
        table.protect_many(table.leaves()[0], set_flags=ACCESSED | DIRTY)
    return vm


def counted(vm: SmallVm, mode: str, warm: int, end: int) -> float:
    """Return walk cycles a miss of accesses [warm, end) after [0, warm), on a core with caches."""
    core = vm.engine.add_core(hierarchy=True)
    vm.engine.load(vm.registers(mode), core=core)
    chunk = packed(STREAM, 0, end)
    assert vm.engine.run(chunk[:warm], core=core).exit is Exit.DONE
    before = vm.engine.counters(core=core)
    vm.engine.run(chunk[warm:], core=core)
    after = vm.engine.counters(core=core)
    return (after["walk_cycles"] - before["walk_cycles"]) / (after["l2_misses"] - before["l2_misses"])


@pytest.mark.parametrize("mode", ["base", "vmm-direct", "dual-direct"])
def test_prices_are_those_of_a_hierarchy_run_whatever_the_vm_s_mode(mode: str) -> None:
    vm = dirty(SmallVm())
    prices = Calibrations(vm.engine, warm=2000, measured=1000).prices("db", vm.registers(mode), STREAM, 3000)
    assert prices.native_cycles == pytest.approx(counted(vm, "native", 2000, 3000))
    assert prices.virtual_cycles == pytest.approx(counted(vm, "base", 2000, 3000))
    assert prices.virtual_cycles > prices.native_cycles > 0
    assert "calibrated by a hierarchy run" in prices.label


def test_a_calibration_leaves_no_trace() -> None:
    vm = SmallVm()
    before = vm.engine.tables.entries.copy()
    Calibrations(vm.engine, warm=500, measured=500).prices("db", vm.registers(), STREAM, 1000)
    np.testing.assert_array_equal(before, vm.engine.tables.entries)
    assert vm.engine.cores == ()


def test_a_price_is_known_by_workload_and_mix_of_leaves_in_quarters() -> None:
    vm, runs = SmallVm(), []

    def stream(x: int, n: int) -> Any:
        runs.append(x)
        return STREAM(x, n)

    known = Calibrations(vm.engine, warm=500, measured=500)

    def ask(workload: str = "db") -> int:
        known.prices(workload, vm.registers(), stream, 1000)
        return len(runs)

    assert (ask(), ask(), ask("web"), ask()) == (1, 1, 2, 2)
    vm.guest.unmap(PAGE)
    assert ask() == 2, "a page less is the same mix"
    vm.guest.map(PAGE + 512, 1 << 20, size=1, flags=WRITABLE)  # 512 of 767 pages are large now: three quarters
    assert leaf_mix(vm.guest) == (1, 3, 0)
    assert (ask(), ask()) == (3, 3)


def test_accesses_that_exit_are_left_out() -> None:
    vm, less = dirty(SmallVm()), dirty(SmallVm())
    gone = np.unique(STREAM(0, 100)[0])[:3]
    less.guest.unmap_many(gone)
    prices = [
        Calibrations(each.engine, warm=500, measured=500).prices("db", each.registers(), STREAM, 1000)
        for each in (vm, less)
    ]
    assert prices[1].native_cycles == pytest.approx(prices[0].native_cycles, rel=0.2)


def test_a_workload_that_never_misses_is_priced_by_its_cold_misses() -> None:
    vm = SmallVm()
    stream = Phases(3, sizes=(2,), length=10**9)
    prices = Calibrations(vm.engine, warm=500, measured=500).prices("tiny", vm.registers(), stream, 1000)
    # Two walks from empty caches: every line of the first comes from memory.
    assert prices.native_cycles >= 4 * 200 / 2


def test_a_native_vm_has_one_price() -> None:
    vm = SmallVm()
    prices = Calibrations(vm.engine, warm=500, measured=500).prices("db", vm.registers("native"), STREAM, 1000)
    assert prices.native_cycles == prices.virtual_cycles


def test_a_twin_has_no_nested_table_and_no_segment() -> None:
    vm = SmallVm()
    twin = native_twin(vm.registers("dual-direct"))
    assert (twin.mode, twin.nested_table, twin.guest_segment, twin.vmm_segment) == (MODES["native"], None, None, None)
    assert twin.guest_table is vm.guest


def test_lines_are_spread_over_the_page_and_the_same_at_every_call() -> None:
    chunk = packed(STREAM, 100, 6400)
    lines = chunk >> 12 & 63
    assert np.bincount(lines, minlength=64).min() > 90
    np.testing.assert_array_equal(chunk[50:], packed(STREAM, 150, 6350))
    assert DATA
