"""What full 2 MiB backing gains on a server whose memory is fragmented (Contiguitas, ISCA 2023: 7 to 18 %)."""

from __future__ import annotations

import pytest

from tests.actors.living import S, boot, live, simulation
from vmmsim.actors.clock import Pause, Turn
from vmmsim.jit import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="needs memories of many pages")


def cycles_per_access(program: str, age: str) -> tuple[float, int]:
    """Return what an access takes, and how many huge pages back the VM, on a host of that age."""
    host = {"memory": "4GiB", "kernelcore": "4GiB", "age": age}
    sim = simulation(host=host, until="10m", measure={"window": 100_000})
    guest = boot(sim, memory="2GiB", workload={"name": program, "footprint": "1536MiB"})

    def script(sim):
        yield Pause(sim.env, 60 * S, Turn.MEASURE)

    live(sim, script)
    return guest.vcpus.meter.cycles_per_access, int(guest.vm.nested.leaf_counts[1])


@pytest.mark.parametrize("program", ["web", "memcached"])
def test_services_gain_7_to_18_per_cent_where_an_aged_host_had_no_huge_page_for_them(program):
    fragmented, few = cycles_per_access(program, "1h")
    full, many = cycles_per_access(program, "0s")
    assert few < 0.05 * many
    assert 0.07 <= fragmented / full - 1 <= 0.18
