"""Whether a balloon policy of one's own keeps to its contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from vmmsim.protocols import HostView, VmView

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmmsim.protocols import BalloonPolicy

_GIB: Final = 1 << 30


def check_balloon_policy(policy: BalloonPolicy) -> None:
    """Check that ``policy`` keeps to its contract, ``protocols.BalloonPolicy``; AssertionError says where it does not.

    It is asked about VMs of all kinds on hosts in every state: idle and full ones, ones that are just booting, under a
    VMM segment, with nothing known of their activity; each question more than once, and in more than one order.
    """
    hosts = list(odd_hosts())
    first = [[_asked(policy, vm, host) for vm in host.guests] for host in hosts]
    for host, said in reversed(list(zip(hosts, first, strict=True))):
        for vm, target in reversed(list(zip(host.guests, said, strict=True))):
            again = _asked(policy, vm, host)
            assert again == target, f"target_bytes of {vm.name} is {again} when asked again, and was {target}"


def _asked(policy: BalloonPolicy, vm: VmView, host: HostView) -> int:
    before = repr(vm), repr(host)
    of = f"target_bytes of {vm.name} ({vm.used_bytes >> 20} MiB used of {vm.memory_bytes >> 20}, host {host.state})"
    try:
        target = policy.target_bytes(vm, host)
    except Exception as error:
        raise AssertionError(f"{of} raises {type(error).__name__}: {error}") from error
    assert type(target) is int, f"{of} is {target!r}, which is no int"
    assert (repr(vm), repr(host)) == before, f"{of} changes what it is shown"
    assert target >= 0, f"{of} is {target}, less than nothing"
    return target


def odd_hosts() -> Iterator[HostView]:
    """Yield views of hosts in every state, each with VMs that a policy may stumble over."""
    guests = tuple(_odd_vms())
    shares = {"high": 1.5, "clear": 0.8, "soft": 0.5, "hard": 0.2, "low": 0.0}
    for state, share in shares.items():
        free = int(4 * _GIB * share)
        for chosen in (guests, guests[:1], tuple(attrs.evolve(vm, managed=False) for vm in guests)):
            yield HostView(
                memory_bytes=96 * _GIB,
                free_bytes=free + _GIB,
                largest_free_bytes=free // 2,
                vms=tuple(vm.name for vm in chosen),
                available_bytes=free,
                reserve_bytes=4 * _GIB,
                state=state,
                guests=chosen,
            )


def _odd_vms() -> Iterator[VmView]:
    whole = VmView(
        name="idle", memory_bytes=16 * _GIB, used_bytes=_GIB, resident_bytes=2 * _GIB, balloon_bytes=0, mode="base",
        mode_wanted="base", overhead=None, active_bytes=0,
    )  # fmt: skip
    yield whole
    yield attrs.evolve(whole, name="booting", used_bytes=0, resident_bytes=0, active_bytes=None)
    yield attrs.evolve(whole, name="full", used_bytes=16 * _GIB, resident_bytes=16 * _GIB, active_bytes=16 * _GIB)
    yield attrs.evolve(whole, name="cached", used_bytes=16 * _GIB, cache_bytes=12 * _GIB, overhead=0.2)
    yield attrs.evolve(whole, name="given", used_bytes=6 * _GIB, balloon_bytes=10 * _GIB, reusable_bytes=10 * _GIB)
    yield attrs.evolve(
        whole, name="held", mode="vmm-direct", mode_wanted="vmm-direct", balloon_bytes=8 * _GIB, reusable_bytes=0,
        resident_bytes=16 * _GIB, overhead=0.0,
    )  # fmt: skip
    yield attrs.evolve(whole, name="exchanged", memory_bytes=24 * _GIB, exchanged_bytes=8 * _GIB, mode="dual-direct")
    yield attrs.evolve(whole, name="small", memory_bytes=2 << 20, used_bytes=1 << 20, active_bytes=4096)
    yield attrs.evolve(whole, name="told", managed=False, balloon_bytes=2 * _GIB, used_bytes=8 * _GIB)
