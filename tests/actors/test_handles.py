"""What scripts can ask of a VM: every verb of scenario files."""

from __future__ import annotations

import pytest

from tests.actors.toys import doing, lived
from vmmsim.handles import BalloonHandle, Handle
from vmmsim.runs import simulate
from vmmsim.scenario.events import EVENTS
from vmmsim.simulation import Simulation

GIB = 1 << 30
CALLED = {"boot": (Simulation, "boot"), "fault": (Simulation, "fault"), "mode": (Handle, "want"),
          "balloon": (BalloonHandle, "target")}  # fmt: skip
"""Verbs of files that are no verb of a VM's handle, or have another name there."""


@pytest.mark.parametrize("verb", EVENTS)
def test_every_verb_of_a_scenario_file_is_there_in_python(verb: str) -> None:
    where, name = CALLED.get(verb, (Handle, verb))
    assert callable(getattr(where, name))


def test_a_script_moves_the_memory_below_the_gap_and_learns_how_much_went() -> None:
    told = {}

    def life(sim):  # type: ignore[no-untyped-def]
        vm = yield sim.boot("db", memory="8GiB")
        told["moved"] = yield vm.reclaim_io_gap()
        told["again"] = yield vm.reclaim_io_gap()

    result = simulate(host="12GiB", script=life, until="10s")
    assert told == {"moved": 7 * GIB // 2 - GIB // 4, "again": 0}  # 3.5 GiB below the gap, 256 MiB stay
    rows = [row for row in result["decisions"].to_pylist() if row["verb"] == "reclaim_io_gap"]
    assert [row["outcome"] for row in rows] == ["done", "done"]


def test_a_script_compacts_a_guest() -> None:
    sim, guest = lived()
    memory = guest.vm.guest
    free, run = memory.free_pages, memory.largest_free_run()
    moved = doing(sim, sim.vm("db").compact())
    assert moved == guest.compactor.copied_pages
    assert (memory.free_pages, memory.largest_free_run() >= run) == (free, True)
    said = sim.recorder.last(1)[0]
    assert (said.actor, said.verb, said.vm, said.got) == ("guest", "compact", "db", f"{moved} pages")
