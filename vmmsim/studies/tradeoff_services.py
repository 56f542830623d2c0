"""One attempt of a service on one page, by the mechanism that the service's actor uses, and what came of it.

No function here knows a mode: an attempt asks the mechanism, looks at what is so afterwards, and says why not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim.actors.obstacles import REFUSALS, Obstacle
from vmmsim.memory.frames import PAGEBLOCK, Kind
from vmmsim.translation.chunk import pack
from vmmsim.translation.page_table import WRITABLE
from vmmsim.translation.state import Exit, Step

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.studies.tradeoff_life import Life
    from vmmsim.studies.tradeoff_pages import Page

DONE: Final = "DONE"
UNSEEN: Final = "UNSEEN"
"""A write that should have been noticed was not, and no segment is to blame."""
REFUSED: Final = tuple(obstacle.name for obstacle in REFUSALS)
"""Outcomes that are the mode's doing."""


@attrs.frozen(kw_only=True)
class Attempt:
    """What came of a service on one page."""

    page: Page
    outcome: str
    """DONE, or why not."""
    gfn: int
    gvpn: int | None
    """None if it is no page of the program's."""
    hfn: int
    """The frame that the page had before; -1 if none."""
    reusable: bool
    """Whether the host can give that frame to others now."""

    sound: bool = True
    """Whether every segment that covers the page leads to a frame that is still the page's."""

    @property
    def done(self) -> bool:
        """Whether the service could have the page."""
        return self.outcome == DONE

    @property
    def refused(self) -> bool:
        """Whether a segment keeps it from that."""
        return self.outcome in REFUSED


def ready(life: Life, pages: Iterable[Page]) -> int:
    """Have every page of the sample used once, so that it has a frame of its own; return the core that looks on."""
    vm, vmm = life.vm, life.sim.vmm
    gfns = np.unique([page.gfn(life) for page in pages]).astype(np.int64)
    vmm.back(vm, gfns)
    core = life.sim.engine.add_core(shadow=True)
    life.sim.engine.load(vm.registers(), core=core)
    return core


def attempt(life: Life, service: str, page: Page, core: int) -> Attempt:
    """Try ``service`` on a page of a life; the caller puts the life back as it was."""
    vm = life.vm
    gfn, gvpn = page.gfn(life), page.gvpn(life)
    hfn = int(vm.nested.translate(np.array([gfn]))[0])
    outcome = SERVICES[service](life, page, gfn, core)
    sound = outcome != DONE or _is_sound(life, page, gfn, gvpn)
    reusable = outcome == DONE and (hfn < 0 or life.sim.host.frames["kind"][hfn] == Kind.FREE)
    return Attempt(page=page, outcome=outcome, gfn=gfn, gvpn=gvpn, hfn=hfn, reusable=bool(reusable), sound=sound)


def _one(number: int) -> NDArray[np.int64]:
    return np.array([number], np.int64)


def _name(why: NDArray[np.uint8]) -> str:
    """Return the name of the one obstacle that a mechanism found; of ``NONE``, that there was no room."""
    return Obstacle(int(why[0]) or Obstacle.NO_ROOM).name


def share(life: Life, page: Page, gfn: int, core: int) -> str:
    """Merge the page with one of the twin VM that holds the same, as KSM does."""
    vm, vmm = life.vm, life.sim.vmm
    merging, contents = vmm.merging, vmm.contents
    assert merging is not None
    assert contents is not None
    assert life.twin is not None
    if not merging.may_share(vm, _one(gfn))[0]:
        return _name(merging.obstacles(vm, _one(gfn)))
    twin = life.twin.vm
    like = _twin_page(twin)
    contents.of_frame[twin.nested.translate(like)] = contents.of_frame[vm.nested.translate(_one(gfn))]
    frames = merging.share(twin, like)
    merging.merge(vm, _one(gfn), frames)
    return DONE if int(vm.nested.translate(_one(gfn))[0]) == int(frames[0]) else "NOT_MERGED"


def _twin_page(twin: VirtualMachine) -> NDArray[np.int64]:
    """Return a page of the twin that may be shared: one of its kernel's."""
    return np.flatnonzero(twin.guest.frames["kind"] == Kind.KERNEL)[:1]


def give_up(life: Life, page: Page, gfn: int, core: int) -> str:
    """Have the guest's balloon driver give up this very page."""
    why, _ = life.guest.balloon.give_up(_one(gfn))
    given = life.vm.guest.frames["kind"][gfn] == Kind.BALLOON
    return DONE if given and why[0] == Obstacle.NONE else _name(why)


def swap_by_guest(life: Life, page: Page, gfn: int, core: int) -> str:
    """Have the guest swap the page out; it swaps what programs have, nothing else."""
    swap, process = life.guest.os.swap, life.guest.os.process
    assert swap is not None
    if page.role != "program":
        return Obstacle.IMMOVABLE.name if page.role in ("kernel", "page tables") else Obstacle.ABSENT.name
    why = swap.obstacles(_one(page.key))
    went, _ = swap.swap_out(_one(page.key))
    return DONE if went == 1 and bool(swap.is_out(_one(page.key))[0]) and not process.mapped[page.key] else _name(why)


def swap_by_vmm(life: Life, page: Page, gfn: int, core: int) -> str:
    """Have the VMM swap the page out."""
    vm, swap = life.vm, life.sim.vmm.swap
    assert swap is not None
    assert vm.swapped is not None
    why = swap.obstacles(vm, _one(gfn))
    went, _ = swap.swap_out(vm, _one(gfn))
    gone = int(vm.nested.translate(_one(gfn))[0]) < 0 and vm.swapped[gfn] > 0
    return DONE if went == 1 and gone else _name(why)


def log_writes(life: Life, page: Page, gfn: int, core: int) -> str:
    """Take the right to write from the page's nested leaf, and see whether the next write stops, as migration needs."""
    vm, engine = life.vm, life.sim.engine
    gvpn = page.gvpn(life)
    if gvpn is None:
        return Obstacle.ABSENT.name
    if int(vm.nested.mapped_sizes(_one(gfn))[0]) == 1:
        vm.nested.split_many(_one(gfn) & -PAGEBLOCK)
    vm.nested.protect_many(_one(gfn), clear_flags=WRITABLE)
    engine.invalidate_eptp(vm.number, cores=(*vm.cores, core))
    engine.empty_core(core)
    outcome, log = engine.walk_log(int(pack(gvpn, True)[0]), core=core)
    if outcome.exit is Exit.NESTED_WRITE and outcome.gfn == gfn:
        return DONE
    by_segment = any(step.step is Step.VMM_CHECK and step.page == gfn for step in log)
    return Obstacle.PINNED_VMM.name if by_segment or vm.under_vmm_segment(_one(gfn))[0] else UNSEEN


SERVICES: Final[dict[str, Callable[[Life, Page, int, int], str]]] = {
    "page_sharing": share,
    "ballooning": give_up,
    "guest_swapping": swap_by_guest,
    "vmm_swapping": swap_by_vmm,
    "dirty_logging": log_writes,
}
"""Services by their names in documents; the last one is beyond the poster."""


def _is_sound(life: Life, page: Page, gfn: int, gvpn: int | None) -> bool:
    """Tell whether what segments translate is still whose it was: they do not ask the page tables."""
    vm = life.vm
    if gvpn is not None and vm.in_guest_segment(_one(gvpn))[0]:
        assert vm.guest_segment is not None
        mine = vm.guest.frames[gvpn + vm.guest_segment.offset]
        process = life.guest.os.process
        if not (mine["kind"] == Kind.USER and mine["owner"] == process.number and mine["page"] == page.key):
            return False
    if vm.under_vmm_segment(_one(gfn))[0]:
        assert vm.vmm_segment is not None
        frame = life.sim.host.frames[gfn + vm.vmm_segment.offset]
        return bool(frame["kind"] == Kind.USER and frame["owner"] == vm.number and frame["page"] == gfn)
    return True
