"""Page sharing by content: Linux's KSM with its defaults (mm/ksm.c), as ksmd sees the guests of QEMU with mem-merge on.

Every wake-up scans some pages; when all resident guest memory was scanned once, a full scan is over. A page that
equals a node of the stable tree joins it. Else it must hold what it held at the last scan to be looked for in the
unstable tree, which is built anew in each full scan: two pages that meet there found a node. A frame has at most
``max_page_sharing`` mappings; more pages of that content found further nodes. Pages of zeros are pages like others
(use_zero_pages = 0); no page is left out because it never merged (no smart_scan).

Nothing is taken from a change in progress: what is isolated, or under a lease, is left alone. What a live VMM segment
pins is scanned and compared, and where it meets its equal the merge is refused, PINNED_VMM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from vmmsim import rates
from vmmsim.actors.backing import VmLost
from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.sharing_books import Counters, Items
from vmmsim.memory.content_trees import (
    FOUNDS,
    FREE,
    ITEM,
    JOINS,
    PINNED,
    REFUSED,
    SKIPPED,
    UNSTABLE,
    ContentTrees,
    item_of,
    split_items,
)
from vmmsim.memory.frames import ISOLATED, SHARED, Kind

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from simpy import Environment, Event

    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.actors.vmm import Vmm
    from vmmsim.decisions import Recorder
    from vmmsim.scenario import Sharing as Settings

PAGE: Final = 4096
BATCH_PAGES: Final = 1 << 16
"""Pages that are scanned in one event, at most."""
STRIDE: Final = 1 << 12
"""gfns that are looked at in one go, at least: most may have no frame."""
BATCHES: Final = 16
"""Events that a full scan takes, at least: so long as wake-ups are no longer than that."""


class Sharing:
    """ksmd: one scanner for the whole host."""

    def __init__(
        self, env: Environment, vmm: Vmm, recorder: Recorder, settings: Settings, *, every_ns: int = 0
    ) -> None:
        """every_ns: time between two decisions that say what was done."""
        assert vmm.merging is not None
        assert vmm.contents is not None
        self.env, self.vmm, self.recorder, self.settings = env, vmm, recorder, settings
        self.merging, self.contents = vmm.merging, vmm.contents
        self.every_ns = every_ns
        self.trees = ContentTrees(int(rates.number("sharing.max_page_sharing")))
        self.scanned_pages = 0
        self.full_scans = 0
        self.merged_pages = 0
        """Merges since time 0."""
        self.refused: dict[str, int] = {}
        """Merges refused since time 0, PINNED_VMM, by the VM whose page was being scanned."""
        self._scan_ns = int(rates.number("sharing.scan_page_ns"))
        self._item_bytes = int(rates.number("sharing.item_bytes"))
        self._items: dict[int, Items] = {}
        self._node_of = np.zeros(vmm.host.pages, np.int32)  # of each frame: 1 + its node
        self._vm = 0
        self._gfn = 0
        self._told = (0, 0, 0, 0)
        self._told_refused: dict[str, int] = {}
        self._told_ns = 0
        self.merging.left, self.merging.gone, self.merging.moved = self._left, self._gone, self._moved
        self.merging.recount = self.check

    # The clock

    @property
    def wake_up_ns(self) -> int:
        """Time from one wake-up to the next: the sleep, and the scan itself."""
        return self.settings.sleep_ns + self.settings.pages_to_scan * self._scan_ns

    def scanning(self) -> Generator[Event, object, None]:
        """Be ksmd, for ever; many wake-ups make one event, at whose end they are done."""
        while True:
            wake_ups = self._wake_ups()
            yield Pause(self.env, wake_ups * self.wake_up_ns, Turn.SHARING)
            self.scan(wake_ups)

    def _wake_ups(self) -> int:
        resident = sum(vm.resident_pages for vm in self.vmm.vms.values())
        return max(min(resident // BATCHES, BATCH_PAGES) // self.settings.pages_to_scan, 1)

    def scan(self, wake_ups: int) -> None:
        """Scan what so many wake-ups scan; the one that comes to the end of a full scan ends with it."""
        each = self.settings.pages_to_scan
        left = wake_ups * each
        while left and self.vmm.vms:
            left -= self._some(left)
            if left and not self._more() and not self._advance():
                left -= left % each or each
                self._end_full_scan()

    def _some(self, most: int) -> int:
        """Scan up to ``most`` resident pages of the VM at the cursor, if it has more; return how many."""
        if not self._more():
            return 0
        vm = self.vmm.vms[self._vm]
        start, end = self._gfn, min(self._gfn + max(most, STRIDE), vm.memory_top)
        frames = vm.nested.translate_range(start, end)
        count = int(np.count_nonzero(frames >= 0))
        if count > most:
            frames = frames[: int(np.flatnonzero(frames >= 0)[most])]
            count, end = most, start + frames.size
        self._gfn = end
        self._scan_range(vm, start, frames)
        self.scanned_pages += count
        return count

    def _more(self) -> bool:
        """Tell whether the VM at the cursor has gfns beyond it."""
        vm = self.vmm.vms.get(self._vm)
        return vm is not None and self._gfn < vm.memory_top

    def _advance(self) -> bool:
        """Go on with the next VM; return False, at the first one again, if there is none after this."""
        self._gfn = 0
        after = sorted(number for number in self.vmm.vms if number > self._vm)
        self._vm = after[0] if after else min(self.vmm.vms, default=0)
        return bool(after)

    def _end_full_scan(self) -> None:
        self.full_scans += 1
        self.trees.forget_unstable()
        for number in [number for number in self._items if number not in self.vmm.vms]:
            del self._items[number]
        if self.env.now - self._told_ns >= self.every_ns:
            self.tell()

    # A range of pages

    def _scan_range(self, vm: VirtualMachine, start: int, frames: NDArray[np.int32]) -> None:
        items = self._items.get(vm.number)
        if items is None:
            items = self._items[vm.number] = Items(vm.guest.pages)
        gfns = np.arange(start, start + frames.size)
        there = frames >= 0
        if not there.all():
            items.drop(gfns[~there])
        self._look(vm, gfns[there])
        states = self._states(vm, gfns, frames)
        assert vm.merged is not None
        merged = gfns[there & vm.merged[start : start + frames.size]]
        items.unshared -= int(np.count_nonzero(items.flags[merged] & UNSTABLE))
        items.items += int(np.count_nonzero(items.flags[merged] & ITEM == 0))
        items.flags[merged] = ITEM
        contents = self.contents.of_frame[frames]
        span = slice(start, start + frames.size)
        seen, flags = items.seen[span], items.flags[span]
        self._settle(*self.trees.candidates(contents, states, seen, flags))
        outcomes, nodes, partners, new, grown = self.trees.scan(
            item_of(vm.number, start), contents, states, seen, flags, frames
        )
        items.items += new
        items.unshared += grown
        if refused := int(np.count_nonzero(outcomes == REFUSED)):
            self.refused[vm.name] = self.refused.get(vm.name, 0) + refused
        if np.any((outcomes == JOINS) | (outcomes == FOUNDS)):
            self._merge(vm, gfns, frames, outcomes, nodes, partners)

    def _look(self, vm: VirtualMachine, gfns: NDArray[np.int64]) -> None:
        """Bring contents up to date: find what the program wrote. What is watched is served before it is written."""
        process, book = vm.process, vm.guest.frames
        if vm.activity is None or process is None or not gfns.size:
            return
        mine = gfns[(book["kind"][gfns] == Kind.USER) & (book["owner"][gfns] == process.number)]
        numbers = book["page"][mine].astype(np.int64)
        numbers = numbers[process.mapped[numbers] & (process.watched[numbers] == 0)]
        if numbers.size:
            vm.activity.look(numbers)

    def _states(self, vm: VirtualMachine, gfns: NDArray[np.int64], frames: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return uint8[n]: whether pages may be merged, are pinned, or are to be left alone."""
        assert vm.merged is not None
        there = (frames >= 0) & ~vm.merged[gfns]
        there &= vm.guest.frames["kind"][gfns] != Kind.TABLE  # walks set accessed bits in those: they change
        there &= self.vmm.host.frames["mark"][frames] & ISOLATED == 0
        if vm.lease is not None:
            there &= (gfns < vm.lease.base) | (gfns >= vm.lease.limit)
        states = np.where(there, np.uint8(FREE), np.uint8(SKIPPED))
        if vm.vmm_segment is not None:
            states[there & vm.under_vmm_segment(gfns)] = PINNED
        return states

    def _settle(self, slots: NDArray[np.int64], items: NDArray[np.int64], held: NDArray[np.int32]) -> None:
        """Look at pages in the unstable tree that others may meet: whether they hold the same still."""
        if not slots.size:
            return
        numbers, gfns = split_items(items)
        valid, pinned = np.zeros(slots.size, np.bool_), np.zeros(slots.size, np.bool_)
        for number in np.unique(numbers).tolist():
            vm = self.vmm.vms.get(number)
            if vm is None:
                continue
            some = np.flatnonzero(numbers == number)
            mine = gfns[some]
            frames = vm.nested.translate(mine).astype(np.int32)
            self._look(vm, mine[frames >= 0])
            states = self._states(vm, mine, frames)
            valid[some] = (states != SKIPPED) & (self.contents.of_frame[frames] == held[some])
            pinned[some] = states == PINNED
        self.trees.settle(slots, valid, pinned)

    # Merging

    def _merge(
        self, vm: VirtualMachine, gfns: NDArray[np.int64], frames: NDArray[np.int32], outcomes: NDArray[np.uint8],
        nodes: NDArray[np.int32], partners: NDArray[np.int64],
    ) -> None:  # fmt: skip
        """Do what a scan of pages of ``vm`` came to, as far as it still can be done once huge leaves are split."""
        founds, joins = np.flatnonzero(outcomes == FOUNDS), np.flatnonzero(outcomes == JOINS)
        numbers, others = split_items(partners[founds])
        content = self.trees.content[nodes]
        self._make_small(vm.number, gfns[np.concatenate([founds, joins])])
        for number in np.unique(numbers).tolist():
            self._make_small(number, others[numbers == number])
        alive = np.zeros(gfns.size, np.bool_)
        which = np.concatenate([founds, joins])
        if self.vmm.vms.get(vm.number) is vm:
            alive[which] = self._unchanged(vm, gfns[which], content[which], frames[which])
        partner_alive = np.zeros(founds.size, np.bool_)
        for number in np.unique(numbers).tolist():
            if (other := self.vmm.vms.get(number)) is not None:
                some = numbers == number
                partner_alive[some] = self._unchanged(other, others[some], content[founds[some]])
        alive[founds] &= partner_alive
        gone = nodes[founds[~alive[founds]]]
        self.trees.remove(gone)
        founds, numbers, others = founds[alive[founds]], numbers[alive[founds]], others[alive[founds]]
        self._found(vm, gfns[founds], nodes[founds], numbers, others)
        joined = joins[alive[joins] & self._stands(nodes[joins], content[joins])]
        lost = np.setdiff1d(joins, joined)
        still = lost[self.trees.content[nodes[lost]] == content[lost]]
        self.trees.leave(nodes[still])
        if joined.size:
            self.merging.merge(vm, gfns[joined], self.trees.frame[nodes[joined]].astype(np.int64))
            self.merged_pages += int(joined.size)

    def _make_small(self, number: int, gfns: NDArray[np.int64]) -> None:
        vm = self.vmm.vms.get(number)
        if vm is None:
            return
        try:
            self.merging.make_small(vm, gfns[vm.nested.translate(gfns) >= 0])
        except VmLost:  # there was no frame for a table: what is left of the plan is looked at again
            return

    def _unchanged(
        self, vm: VirtualMachine, gfns: NDArray[np.int64], content: NDArray[np.int32],
        frames: NDArray[np.int32] | None = None,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Tell which pages may be merged still, hold ``content``, and lie in ``frames`` if those are given."""
        now = vm.nested.translate(gfns).astype(np.int32)
        same = (self._states(vm, gfns, now) == FREE) & (self.contents.of_frame[now] == content)
        return np.asarray(same if frames is None else same & (now == frames))

    def _stands(self, nodes: NDArray[np.int32], content: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Tell which nodes hold ``content``, and have a frame that nobody is moving."""
        there = self.trees.content[nodes] == content
        return np.asarray(there & (self.vmm.host.frames["mark"][self.trees.frame[nodes]] & ISOLATED == 0))

    def _found(
        self, vm: VirtualMachine, gfns: NDArray[np.int64], nodes: NDArray[np.int32], numbers: NDArray[np.int64],
        others: NDArray[np.int64],
    ) -> None:  # fmt: skip
        """Make the frames of ``gfns`` shared, and map to each the page ``others`` of VM ``numbers`` as well."""
        if not gfns.size:
            return
        frames = self.merging.share(vm, gfns)
        self._node_of[frames] = nodes + 1
        for number in np.unique(numbers).tolist():
            some = numbers == number
            self.merging.merge(self.vmm.vms[number], others[some], frames[some])
            items = self._items[number]
            items.unshared -= int(np.count_nonzero(items.flags[others[some]] & UNSTABLE))
            items.flags[others[some]] = ITEM
        self.merged_pages += int(gfns.size)

    # Shared frames that go, or move

    def _left(self, frames: NDArray[np.int64]) -> None:
        nodes = self._node_of[frames]
        self.trees.leave(nodes[nodes > 0] - 1)

    def _gone(self, frames: NDArray[np.int64]) -> None:
        nodes = self._node_of[frames]
        self._node_of[frames] = 0
        self.trees.remove(nodes[nodes > 0] - 1)

    def _moved(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        nodes = self._node_of[old]
        self._node_of[old] = 0
        self._node_of[new] = nodes
        self.trees.frame[nodes[nodes > 0] - 1] = new[nodes > 0]

    # What is told

    def counters(self) -> Counters:
        """Return Linux's counters as they are now."""
        mapped = sum(vm.merged_pages for vm in self.vmm.vms.values())
        living = [items for number, items in self._items.items() if number in self.vmm.vms]
        items, unshared = sum(one.items for one in living), sum(one.unshared for one in living)
        shared = self.trees.nodes
        return Counters(
            pages_shared=shared,
            pages_sharing=mapped - shared,
            pages_unshared=unshared,
            pages_volatile=items - mapped - unshared,
            full_scans=self.full_scans,
            stable_node_chains=self.trees.chains,
            general_profit=(mapped - shared) * PAGE - items * self._item_bytes,
            refused_pinned_vmm=sum(self.refused.values()),
            scanned_pages=self.scanned_pages,
            ksmd_ns=self.scanned_pages * self._scan_ns,
        )

    def columns(self) -> dict[str, int]:
        """Return the columns of the host table that tell of page sharing."""
        found = attrs.asdict(self.counters())
        del found["scanned_pages"]
        return {
            **found, "unshared_writes": self.merging.broken_pages, "unsharing_ns": self.merging.broken_ns
        }  # fmt: skip

    def tell(self) -> None:
        """Record what was done since it was told last: one decision, and one for each VM whose merges were refused."""
        self._told_ns = int(self.env.now)
        now = (self.full_scans, self.merged_pages, self.merging.broken_pages, self.scanned_pages)
        scans, merged, broken, scanned = (new - old for new, old in zip(now, self._told, strict=True))
        self._told = now
        if not merged and not broken and self.refused == self._told_refused:
            return
        count = self.counters()
        why = (
            f"{scans} full scan{'s' if scans != 1 else ''}, {scanned * self._scan_ns / 1e9:.1f} s of ksmd; {broken} "
            f"pages were written to and came apart; pages_shared {count.pages_shared}, "
            f"pages_sharing {count.pages_sharing}, pages_unshared {count.pages_unshared}, "
            f"pages_volatile {count.pages_volatile}"
        )
        row = self.recorder.decide(
            "ksm", "merge", asked=f"{scanned} pages", got=f"{merged} pages", outcome="done", why=why
        )
        for name, times in self.refused.items():
            if more := times - self._told_refused.get(name, 0):
                self.recorder.decide(
                    "ksm", "merge", vm=name, asked=f"{more} pages", outcome="refused", cause=row,
                    why="PINNED_VMM: a VMM segment maps the page where it is",
                )  # fmt: skip
        self._told_refused = dict(self.refused)

    def check(self) -> None:
        """Recount nodes and items."""
        book, trees = self.vmm.host.frames, self.trees
        nodes = np.flatnonzero(trees.content >= 0)
        shared = np.flatnonzero((book["owner"] == SHARED) & (book["kind"] == Kind.USER))
        assert nodes.size == trees.nodes, f"{trees.nodes} nodes booked, {nodes.size} are"
        assert np.array_equal(np.sort(trees.frame[nodes]), shared), "nodes and shared frames differ"
        assert np.array_equal(trees.count[nodes], book["page"][trees.frame[nodes]]), "mappings of a node are miscounted"
        assert not np.any(trees.count[nodes] > trees.most), "a node has more mappings than it may"
        held = self.contents.of_frame[trees.frame[nodes]]
        assert np.array_equal(held, trees.content[nodes]), "a shared frame was written to"
        assert np.array_equal(np.flatnonzero(self._node_of), shared), "the map from frames to nodes is wrong"
        for items in self._items.values():
            assert items.items == np.count_nonzero(items.flags & ITEM), "items are miscounted"
            assert items.unshared == np.count_nonzero(items.flags & UNSTABLE), "the unstable tree is miscounted"
