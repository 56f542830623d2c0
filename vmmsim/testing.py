"""What users test their own code with: a check for each contract of ``vmmsim.protocols``, and of a whole host.

``check_workload`` is for a workload; ``toy_scenario`` describes a host small enough to recount after every event, and
``check`` recounts it; ``SystemMachine`` lives a random life on one, of the verbs it is given.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmmsim.actors.invariants import check_all
from vmmsim.errors import Refused
from vmmsim.memory.frames import Kind
from vmmsim.protocols import Region
from vmmsim.scenario import VM, Event, Host, Measure, Run, Scenario
from vmmsim.scenario import Workload as Described
from vmmsim.simulation import Simulation
from vmmsim.workloads.adapted import Adapted
from vmmsim.workloads.touching import first_of_each

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    import simpy
    from numpy.typing import NDArray

    from vmmsim.protocols import UserWorkload, Workload
    from vmmsim.scenario import VmMode

_FAR: Final = 10**12
"""A position that lives reach: whoever counts up to it, access by access, is found out."""
_SPAN: Final = 1000
_SPANS: Final = 24
_SIGMAS: Final = 6
_SLACK: Final = 0.02
"""Share by which the numbers of pages touched may differ beside chance: 1 - exp(-p n) is not quite 1 - (1 - p)**n."""


def check_workload(workload: UserWorkload | Workload) -> None:
    """Check that ``workload`` keeps to its contract, ``protocols.UserWorkload``; AssertionError says where it does not.

    Looks at the accesses of some positions, near and far; a workload that takes the longer the further
    on it is asked does not come to an end here. Numbers of pages touched, where they need not be exact, are compared
    over 24 spans and may differ by 6 standard errors and 2 %.
    """
    whole = Adapted(workload, type(workload).__name__)
    _check_regions(whole.regions)
    places = _places(whole)
    for x in places:
        _check_stream(whole, x)
        _check_touched(whole, x, x + _SPAN)
    _check_begins(whole)
    _check_frees(whole, places)
    _check_numbers(whole)


def _check_regions(regions: tuple[Region, ...]) -> None:
    assert all(region.name for region in regions), "each region has a name"
    assert len({region.name for region in regions}) == len(regions), "two regions have the same name"


def _places(whole: Adapted) -> list[int]:
    """Return positions to look at: the start, about the end of the initial phase, far away, about the end."""
    places = [0, 1, 777, max(whole.begins - _SPAN // 2, 0), whole.begins, whole.begins + 12_345, 10**6 + 7]
    if whole.length is None:
        return [*places, _FAR + 1]
    places += [whole.length // 2, max(whole.length - 1000, 0), whole.length]
    return [x for x in places if x <= whole.length]


def _check_stream(whole: Adapted, x: int) -> None:
    pages, writes = whole.stream(x, _SPAN)
    there = _SPAN if whole.length is None else max(0, min(_SPAN, whole.length - x))
    assert pages.shape == writes.shape == (there,), f"stream({x}, {_SPAN}) has {pages.shape}, not ({there},)"
    assert _inside(whole.regions, pages).all(), f"stream({x}, {_SPAN}) leaves the regions"
    for cut in (0, there // 3, there - 1):
        if 0 <= cut <= there:
            later = whole.stream(x + cut, there - cut)  # first, so that whoever advances a generator is found out
            sooner = whole.stream(x, cut)
            for n, name in enumerate(("gvpn", "is_write")):
                same = np.array_equal((pages, writes)[n], np.concatenate([sooner[n], later[n]]))
                assert same, f"stream({x}, {_SPAN}) cut after {cut} accesses differs in {name}"
    for vcpu in (1, 7):
        one, two = whole.stream(x, 100, vcpu), whole.stream(x, 100, vcpu)
        assert np.array_equal(one[0], two[0]), f"stream({x}, 100, vcpu={vcpu}) differs when it is asked for again"
        assert _inside(whole.regions, one[0]).all(), f"stream({x}, 100, vcpu={vcpu}) leaves the regions"


def _check_touched(whole: Adapted, x0: int, x1: int) -> None:
    first = whole.touched(x0, x1)
    whole.touched(x0 + 5, x1 + 3)
    again = whole.touched(x0, x1)
    held = np.concatenate([np.arange(region.start, region.end)[:100] for region in whole.regions])
    asked = np.concatenate([held, *first])
    among = whole.touched_among(asked, x0, x1)
    for name, pages, same, told in zip(("read", "written"), first, again, among, strict=True):
        call = f"touched({x0}, {x1}), pages {name}:"
        assert np.array_equal(pages, same), f"{call} differ when asked for again"
        assert np.unique(pages).size == pages.size, f"{call} a page stands there twice"
        assert _inside(whole.regions, pages).all(), f"{call} leave the regions"
        assert np.array_equal(told, np.isin(asked, pages)), f"{call} touched_among says something else"
    assert not any(pages.size for pages in whole.touched(x0, x0)), f"touched({x0}, {x0}) is not empty"


def _check_begins(whole: Adapted) -> None:
    """Check that the initial phase is told exactly, and that none of its first touches is lost between spans."""
    end = min(whole.begins, 1 << 16)
    met: list[NDArray[np.int64]] = []
    cuts = sorted({0, end, *(n for n in (1, 63, 64, 1000, 1001, end // 2) if n < end)})
    for x0, x1 in pairwise(cuts):
        pages, writes = whole.stream(x0, x1 - x0)
        for pages_told, kind in zip(whole.touched(x0, x1), (~writes, writes), strict=True):
            exact = np.array_equal(pages_told, first_of_each(pages[kind]))
            assert exact, (
                f"touched({x0}, {x1}) is not what stream touches, in its order, though begins is {whole.begins}"
            )
            met.append(pages_told)
    if end:
        every = np.unique(whole.stream(0, end)[0])
        assert np.array_equal(np.unique(np.concatenate(met)), every), "a first touch is lost between spans"


def _check_frees(whole: Adapted, places: list[int]) -> None:
    for x in places:
        far = 1 << 22
        all_of_it = whole.frees(x, x + far)
        for at, region in all_of_it:
            assert x <= at < x + far, f"frees({x}, {x + far}) tells of {at}"
            assert 0 <= region < len(whole.regions), f"frees({x}, {x + far}) tells of region {region}"
        assert all_of_it == sorted(all_of_it), f"frees({x}, {x + far}) is not ascending"
        cut = all_of_it[0][0] if all_of_it else x + far // 3
        parts = whole.frees(x, cut) + whole.frees(cut, x + far)
        assert parts == all_of_it, f"frees({x}, {x + far}) cut at {cut} differs"


def _check_numbers(whole: Adapted) -> None:
    """Check that as many pages are told as touched, over spans too long to be told otherwise than one by one."""
    step = _SPAN * 37 if whole.length is None else max((whole.length - whole.begins) // _SPANS, 1)
    starts = [whole.begins + n * step for n in range(_SPANS)]
    differences = []
    for x in starts:
        pages, writes = whole.stream(x, _SPAN)
        told = whole.touched(x, x + _SPAN)
        differences.append(
            [part.size - np.unique(pages[kind]).size for part, kind in zip(told, (~writes, writes), strict=True)]
        )
    sizes = np.array(differences, dtype=np.float64)
    mean, error = sizes.mean(axis=0), sizes.std(axis=0, ddof=1) / np.sqrt(len(starts))
    for n, name in enumerate(("read", "written")):
        allowed = _SIGMAS * error[n] + _SLACK * _SPAN
        assert abs(mean[n]) <= allowed, (
            f"touched tells of {mean[n]:+.1f} pages {name} in {_SPAN} accesses, "
            f"compared with stream; {allowed:.1f} would do"
        )


def _inside(regions: tuple[Region, ...], pages: NDArray[np.int64]) -> NDArray[np.bool_]:
    starts = np.array([region.start for region in regions])
    ends = np.array([region.end for region in regions])
    which = np.searchsorted(starts, pages, side="right") - 1
    inside: Any = (which >= 0) & (pages < ends[np.maximum(which, 0)])
    return np.asarray(inside, np.bool_)


# A whole host

MIB: Final = 1 << 20


def toy_vm(
    memory_bytes: int = 32 * MIB, *, mode: VmMode = "base", footprint_bytes: int | None = 8 * MIB, **keys: Any
) -> VM:
    """Describe a small VM that runs gups over ``footprint_bytes`` (None: it runs nothing); ``keys``: others of VM."""
    workload = None if footprint_bytes is None else Described(name="gups", footprint_bytes=footprint_bytes)
    return VM(memory_bytes=memory_bytes, mode=mode, workload=workload, **keys)


def toy_scenario(
    vm: Mapping[str, VM] | None = None,
    *,
    machine: str | Path = "sandy-bridge-2012",
    host_bytes: int = 128 * MIB,
    until_ns: int = 5 * 10**9,
    seed: int = 1,
    event: Sequence[Event] = (),
    host: Mapping[str, Any] | None = None,
    measure: Measure | None = None,
    **run: Any,
) -> Scenario:
    """Describe a host so small that every event can be checked: 128 MiB, a quarter of it for what cannot move.

    vm       VMs by name; one of ``toy_vm()``, called "db", unless told
    machine  a shipped machine's name, or a machine file; the smaller its TLBs, the quicker the checks
    host     other keys of ``Host``
    run      other keys of ``Run``
    """
    path = Path(machine)
    keys = {"kernelcore_bytes": host_bytes // 4, **(host or {})}
    return Scenario(
        name="toy",
        folder=path.parent if path.suffix else None,
        run=Run(until_ns=until_ns, seed=seed, **run),
        host=Host(machine=path.name, memory_bytes=host_bytes, **keys),
        vm={"db": toy_vm()} if vm is None else dict(vm),
        event=tuple(event),
        measure=measure or Measure(window=1000),
    )


def check(sim: Simulation) -> None:
    """Recount everything of a host as it is now; AssertionError says what is wrong and where."""
    check_all(sim.vmm, sim.engine, sim.guests.values())


class SystemMachine:
    """A random life on a host: verbs drawn by a seed, some started while others are under way, checked at every event.

    Every method called ``do_...`` is a rule, drawn as often as the others: it may return a process to keep an eye on.
    Subclass it to add rules of one's own; ``setting_up`` says what the host begins with. ``counts`` tells how often
    each rule was followed, and what came of it.
    """

    VMS: Sequence[str] = ("a", "b")
    """Names of the VMs that come and go."""
    MODES: Sequence[VmMode] = ("base", "guest-direct", "vmm-direct", "dual-direct")

    def __init__(self, scenario: Scenario, *, seed: int) -> None:
        self.sim = Simulation(scenario)
        self.random = np.random.default_rng(seed)
        self.counts: Counter[str] = Counter()
        """Rules followed, and what was met: ``refused``, ``events``, and the modes that VMs were in."""
        self.open: list[simpy.Process] = []
        """Processes that were started and have not come to an end."""
        self.rules = sorted(name for name in dir(self) if name.startswith("do_"))
        self.said: list[str] = []
        """The life so far, a line a rule, for whoever has to find out what went wrong."""
        self.sim.start()

    def run(self, rules: int) -> None:
        """Follow so many rules, with some simulated time between them; AssertionError tells the life that led there."""
        try:
            self.advance(10**9)
            for _ in range(rules):
                rule = str(self.random.choice(self.rules))
                self.said.append(f"{self.sim.env.now} ns: {rule}")
                self.follow(rule)
                self.advance(int(self.random.choice([0, 10**5, 10**7, 10**9])))
            self.advance(60 * 10**9, until_quiet=True)
            self.check_quiet()
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.said[-20:]])) from error

    def follow(self, rule: str) -> None:
        """Follow one rule."""
        self.counts[rule] += 1
        try:
            started = getattr(self, rule)()
        except Refused:
            self.counts["refused"] += 1
            return
        if started is not None:
            self.open.append(self.sim.env.process(self._heard(started)))

    def _heard(self, started: simpy.Process) -> Generator[simpy.Event, object, None]:
        try:
            yield started
        except Refused:
            self.counts["refused"] += 1

    def advance(self, duration_ns: int, *, until_quiet: bool = False) -> None:
        """Let simulated time pass, checking after every event; ``until_quiet``: only as long as verbs are under way."""
        sim = self.sim
        until = int(sim.env.now) + duration_ns
        while sim.env.peek() <= until and not sim.lost:
            if until_quiet and not any(one.is_alive for one in self.open):
                break
            sim.env.step()
            check(sim)
            self.counts["events"] += 1
            for mode in sim.modes().values():
                self.counts[mode] += 1
        self.open = [one for one in self.open if one.is_alive]

    def check_quiet(self) -> None:
        """Shut everything down, and check that nothing is left of it."""
        sim = self.sim
        for name in list(sim.guests):
            sim.shutdown(name)
        self.advance(10 * 10**9)
        assert sim.lost or not sim.guests, "VMs run still"
        tokens = [token.by for token in sim.host.tokens.values()]
        assert not tokens, f"tokens are left open: {tokens}"
        assert not sim.host.count(kind=Kind.USER), "frames of VMs are left"
        assert not sim.host.count(kind=Kind.TABLE), "frames of nested tables are left"

    # Rules

    def a_vm(self) -> str:
        """Return the name of a VM that runs; ``Refused`` if none does."""
        running = sorted(self.sim.guests)
        if not running:
            raise Refused("find", why="no VM runs")
        return str(self.random.choice(running))

    def do_boot(self) -> simpy.Process:
        """Boot one of the VMs, or be refused because it runs."""
        return self.sim.boot(str(self.random.choice(self.VMS)))

    def do_shutdown(self) -> simpy.Process | None:
        """Shut one down, every other time it is asked for."""
        name = self.a_vm()
        return self.sim.shutdown(name) if self.random.random() < 0.3 else None

    def do_balloon(self) -> simpy.Process:
        """Let the guest keep a part of its memory."""
        name = self.a_vm()
        memory = self.sim.guests[name].vm.memory_pages
        return self.sim.vm(name).balloon.target(int(self.random.integers(memory // 2, memory + 1)) << 12)

    def do_want(self) -> simpy.Process:
        """Want any mode."""
        return self.sim.vm(self.a_vm()).want(str(self.random.choice(self.MODES)))

    def do_hot_add(self) -> simpy.Process:
        """Add a block of 128 MiB."""
        return self.sim.vm(self.a_vm()).hot_add(128 * MIB)

    def do_hot_remove(self) -> simpy.Process:
        """Take the last block away."""
        return self.sim.vm(self.a_vm()).hot_remove(128 * MIB)

    def do_compact_host(self) -> simpy.Process:
        """Compact the host's memory."""
        return self.sim.compact()

    def do_compact_guest(self) -> simpy.Process:
        """Compact one guest's memory."""
        guest = self.sim.guests[self.a_vm()]
        return self.sim.env.process(guest.compactor.compacting())

    def do_fault(self) -> simpy.Process:
        """Let one correctable bit of a VM's memory fail."""
        return self.sim.fault(fault="bit", vm=self.a_vm())

    def do_migrate(self) -> simpy.Process:
        """Migrate a VM, which goes on here in most cases."""
        then = "leave" if self.random.random() < 0.2 else "stay"
        logging = str(self.random.choice(["wp", "pml"]))
        return self.sim.vm(self.a_vm()).migrate(then=then, logging=logging, bandwidth="1GiB/s", downtime="10ms")

    def do_load(self) -> simpy.Process:
        """Run a workload at another load."""
        return self.sim.vm(self.a_vm()).load(float(self.random.choice([0.0, 0.3, 1.0])))
