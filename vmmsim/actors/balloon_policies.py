"""The balloon policies that are shipped: how much memory each guest is to keep, from what can be seen of all.

A policy has no state and no clock. Every look it says anew what each guest should keep; what guests gave up already is
in what it sees, so that it asks for more while the host is short, and for less once it is not. Policies of users go
through the same door (``protocols.BalloonPolicy``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from vmmsim import rates

if TYPE_CHECKING:
    from vmmsim.protocols import HostView, VmView

STATES: Final = ("high", "clear", "soft", "hard", "low")
"""How much of its reserve a host has available, best first, as VMware's ESXi names it."""
_HALVINGS: Final = 64
"""Steps of a bisection: enough for every byte of 8 TiB."""


def min_free_bytes(host_bytes: int) -> int:
    """Return what a host of ``host_bytes`` should have free: ESXi's minFree, and in proportion for small hosts.

    ESXi: 899 MB for the first 28 GB and a hundredth of the rest. Below 28 GB there is no number to be had; ours is the
    same share as at 28 GB.
    """
    first = int(rates.number("manager.min_free_first_bytes"))
    first_of = int(rates.number("manager.min_free_first_of_bytes"))
    if host_bytes < first_of:
        return first * host_bytes // first_of
    return first + (host_bytes - first_of) // int(rates.number("manager.min_free_rest_divisor"))


def next_state(state: str, available_bytes: int, reserve_bytes: int) -> str:
    """Return the state that follows on ``state``: worse at once, better only by a margin above the threshold.

    Without the margin, memory that a balloon has just freed and guests touch again would change the state every time.
    """
    if not reserve_bytes:
        return STATES[0]
    share = available_bytes / reserve_bytes
    bounds = [rates.number(f"manager.{name}_below") for name in STATES[1:]]
    margin = rates.number("manager.margin")
    worst = sum(share < bound for bound in bounds)
    best = sum(share < bound + margin for bound in bounds)
    return STATES[max(worst, min(best, STATES.index(state)))]


def most(vm: VmView) -> int:
    """Return what a VM keeps if its balloon is empty: its memory, less what it exchanged for other memory."""
    return vm.memory_bytes - vm.exchanged_bytes


def unused(vm: VmView) -> int:
    """Return what a VM does not use: what is free in it or given up, and page cache, which it can drop."""
    return max(most(vm) - vm.used_bytes + vm.cache_bytes, 0)


def managed(host: HostView) -> list[VmView]:
    """Return the VMs whose balloons a policy sets: those that no event holds."""
    return [vm for vm in host.guests if vm.managed]


def in_proportion(vm: VmView, host: HostView, total_bytes: int) -> int:
    """Return what ``vm`` gives up of a total: as much of it as it has of what all guests do not use."""
    everyone = sum(unused(other) for other in managed(host))
    return min(unused(vm), max(total_bytes, 0) * unused(vm) // everyone) if everyone else 0


def given_up(host: HostView) -> int:
    """Return what the balloons that a policy sets hold together."""
    return sum(vm.balloon_bytes for vm in managed(host))


@attrs.frozen
class Proportional:
    """Take what the host's reserve is short of from each guest, in proportion to what it does not use."""

    def target_bytes(self, vm: VmView, host: HostView) -> int:
        """Return what ``vm`` is to keep."""
        return most(vm) - in_proportion(vm, host, given_up(host) + host.reserve_bytes - host.available_bytes)


@attrs.frozen
class Thresholds:
    """As VMware's ESXi: balloons grow when the host's state is soft or worse, stay when clear, shrink when high."""

    def target_bytes(self, vm: VmView, host: HostView) -> int:
        """Return what ``vm`` is to keep."""
        short, held = host.reserve_bytes - host.available_bytes, given_up(host)
        if host.state == "clear":
            return most(vm) - vm.balloon_bytes
        if host.state == "high":
            return most(vm) - min(vm.balloon_bytes, in_proportion(vm, host, held + min(short, 0)))
        return most(vm) - max(vm.balloon_bytes, in_proportion(vm, host, held + short))


def _default_tax() -> float:
    return float(rates.number("manager.idle_tax"))


@attrs.frozen(kw_only=True)
class IdleTax:
    """As Waldspurger (OSDI 2002): memory goes to who pays most shares for a page, an idle page costing more.

    A VM with S shares that is to have P pages, A of them active, pays S / (A + k (P - A)) for each, k = 1 / (1 - tax).
    Taking pages from who pays least until all pay the same gives each P = S w up to its active pages, and a k-th of
    what S w is above them beside; w is what fits. Shares are memory: all VMs are as important as they are large.
    """

    tax: float = attrs.field(factory=_default_tax)
    """Share of its idle memory that a VM must be ready to lose: 0 leaves it alone, 0.75 makes an idle page cost 4."""

    def target_bytes(self, vm: VmView, host: HostView) -> int:
        """Return what ``vm`` is to keep."""
        others = managed(host)
        room = sum(most(one) - one.balloon_bytes for one in others) - (host.reserve_bytes - host.available_bytes)
        if room >= sum(most(one) for one in others):
            return most(vm)
        return self._keeps(vm, self._worth(others, max(room, 0)))

    def _keeps(self, vm: VmView, worth: float) -> int:
        """Return what ``vm`` has if a share buys ``worth`` bytes of active memory."""
        active = min(most(vm) if vm.active_bytes is None else vm.active_bytes, most(vm))
        bought = vm.memory_bytes * worth
        taxed = bought if bought <= active else active + (bought - active) * (1 - self.tax)
        return min(int(taxed), most(vm))

    def _worth(self, vms: list[VmView], room: int) -> float:
        """Return what a share buys if all that is bought has room: the more, the more of it is bought."""
        low, high = 0.0, 1 / (1 - self.tax) + 1
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(self._keeps(vm, middle) for vm in vms) <= room else (low, middle)
        return low


SHIPPED: Final[dict[str, Any]] = {"proportional": Proportional, "thresholds": Thresholds, "idle-tax": IdleTax}
"""Shipped policies by the names that scenarios give them."""
