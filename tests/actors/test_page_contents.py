"""A page read after any sequence of sharing, breaking, swapping and moving holds what was last written to it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.actors.small import toy_scenario
from tests.actors.toys import without_ksmd
from vmmsim.actors.guest import Guest
from vmmsim.simulation import Simulation
from vmmsim.testing import check

SERVICES = {"sharing": {}, "swap": {"device": "zram", "size": "32MiB"}}


class Reader:
    """Remembers what each page of a program held when it was last written to, and reads it again, the long way."""

    def __init__(self, sim: Simulation, guest: Guest) -> None:
        self.sim, self.guest, self.vm = sim, guest, guest.vm
        self.held = self.read()

    def read(self) -> NDArray[np.int32]:
        """Return what each page of the program holds: in its frame, or in its slot of swap space; -1: no page."""
        vm, process = self.vm, self.vm.process
        assert process is not None
        assert vm.swapped is not None
        assert self.sim.vmm.swap is not None
        assert self.sim.vmm.contents is not None
        found = np.full(process.pages, -1, np.int32)
        numbers = np.flatnonzero(process.mapped)
        for number, gfn in zip(numbers, process.table.translate(process.gvpns(numbers)), strict=True):
            hfn = int(vm.nested.translate([gfn])[0])
            slot = int(vm.swapped[gfn]) - 1
            assert hfn >= 0 or slot >= 0, f"gfn {gfn} is nowhere"
            of = self.sim.vmm.contents.of_frame[hfn] if hfn >= 0 else self.sim.vmm.swap.device.content[slot]
            found[number] = of
        return found

    def same(self) -> bool:
        return bool(np.array_equal(self.held, self.read()))


@pytest.fixture
def idle() -> tuple[Simulation, list[Guest]]:
    """Two VMs whose programs have written their memory and stand still."""
    vm = {"memory": "8MiB", "workload": {"name": "gups", "footprint": "3MiB"}}
    sim = Simulation(toy_scenario(host=SERVICES, vm={"a": vm, "b": vm}), check=True)
    without_ksmd(sim).start()
    sim.env.run(until=10**9)
    guests = list(sim.guests.values())
    for guest in guests:
        assert guest.vcpus is not None
        guest.vcpus.set_load(0.0)
    sim.env.run(until=1_100_000_000)
    check(sim)
    return sim, guests


def resident(guest: Guest) -> NDArray[np.int64]:
    """Return the resident, private gfns of a guest's program."""
    vm, process = guest.vm, guest.vm.process
    assert process is not None
    assert vm.merged is not None
    gfns = process.table.translate(process.gvpns(np.flatnonzero(process.mapped)))
    return gfns[(vm.nested.translate(gfns) >= 0) & ~vm.merged[gfns]]


@pytest.mark.parametrize("seed", range(6))
def test_no_page_loses_what_was_written_to_it(idle: tuple[Simulation, list[Guest]], seed: int) -> None:
    sim, guests = idle
    random, did = np.random.default_rng(seed), Counter[str]()
    vmm, readers = sim.vmm, [Reader(sim, guest) for guest in guests]
    assert vmm.contents is not None
    assert vmm.merging is not None
    assert vmm.swap is not None
    shared: dict[int, int] = {}
    vmm.merging.gone = lambda frames: [shared.pop(f) for f in frames.tolist()] and None
    vmm.merging.moved = lambda old, new: shared.update(
        {n: shared.pop(o) for o, n in zip(old.tolist(), new.tolist(), strict=True)}
    )
    for _ in range(60):
        which = int(random.integers(2))
        guest, reader = guests[which], readers[which]
        vm, act = guest.vm, str(random.choice(["share", "merge", "out", "in", "break", "write", "compact", "move"]))
        gfns = resident(guest)
        some = random.choice(gfns, min(gfns.size, int(random.integers(1, 40))), replace=False)
        all_gfns = vm.process.table.translate(vm.process.gvpns(np.flatnonzero(vm.process.mapped)))  # type: ignore[union-attr]
        any_of = random.choice(all_gfns, 20, replace=False)
        if act == "share":
            for frame in vmm.merging.share(vm, some).tolist():
                shared[frame] = int(vmm.contents.of_frame[frame])
        elif act == "merge":
            content = vmm.contents.of_frame[vm.nested.translate(gfns)]
            by_content = {held: frame for frame, held in shared.items()}
            like = np.array([by_content.get(one, -1) for one in content.tolist()], np.int64)
            if not np.any(like >= 0):
                continue
            vmm.merging.merge(vm, gfns[like >= 0], like[like >= 0])
        elif act == "out":
            vmm.swap.swap_out(vm, some)
        elif act == "in":
            vmm.bring_in(vm, any_of)
        elif act == "break":
            vmm.back(vm, any_of)
        elif act == "write":
            numbers = random.choice(np.flatnonzero(vm.process.mapped), 20, replace=False)  # type: ignore[union-attr]
            guest.os._serve(numbers, np.ones(20, np.bool_))
            now = reader.read()
            assert not np.any(now[numbers] == reader.held[numbers]), "a write leaves something new"
            reader.held[numbers] = now[numbers]
        elif act == "move":
            new = vm.guest.take(16, kind=vm.guest.frames["kind"][some[0]])
            vm.guest.give_back(new)
        else:
            sim.env.run(until=sim.compact())
        did[act] += 1
        check(sim)
        assert all(each.same() for each in readers), f"lost by {act}: {did}"
    assert {"out", "in", "write"} <= set(did), did
    assert len(did) > 5, did
