"""The check of mode policies: that whatever a VM and its host look like, the answer is a mode, and always the same."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any, Final, get_args

import attrs

from vmmsim.hints import hint, shown
from vmmsim.protocols import HostView, VmView
from vmmsim.scenario import VmMode

if TYPE_CHECKING:
    from vmmsim.protocols import ModePolicy

_GIB: Final = 1 << 30
_MODES: Final[tuple[str, ...]] = get_args(VmMode)
_OVERHEADS: Final = (None, 0.0, 0.004, 0.05, 0.3, 2.0)
"""Nothing is known before the first sample; nothing is walked in Dual Direct; GUPS may walk longer than it works."""


def check_mode_policy(policy: ModePolicy) -> None:
    """Check that ``policy`` keeps to its contract, ``protocols.ModePolicy``; AssertionError says where it does not.

    It is shown VMs and hosts of many kinds: in each mode and wanting each, sampled or not, on hosts that are free, full
    and fragmented, alone and among others; each of them twice, the second time in the opposite order. A mode that is
    refused is one that a VM wants and has not.
    """
    name = policy.__name__ if isinstance(policy, type) else type(policy).__name__
    assert not isinstance(policy, type), f"{name} is a class: check what it makes, {name}()"
    assert callable(getattr(policy, "wanted", None)), f"{name} has no method wanted(vm, host)"
    views = list(_views())
    answers = [_asked(policy, vm, host) for vm, host in views]
    for (vm, host), answer in reversed(list(zip(views, answers, strict=True))):
        again = _asked(policy, vm, host)
        assert again == answer, (
            f"wanted says {shown(again)}, and said {shown(answer)} of the same views: it must not remember, draw or "
            f"look at a clock; {_of(vm, host)}"
        )


def _asked(policy: ModePolicy, vm: VmView, host: HostView) -> str:
    """Return the policy's answer, which is a mode."""
    seen = attrs.asdict(vm), attrs.asdict(host)
    try:
        answer: Any = policy.wanted(vm, host)
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise AssertionError(f"wanted raises {type(error).__name__}: {said}; {_of(vm, host)}") from error
    assert (attrs.asdict(vm), attrs.asdict(host)) == seen, f"wanted changes what it is shown; {_of(vm, host)}"
    assert not inspect.isgenerator(answer), "wanted yields: a policy has no clock, and returns a mode"
    is_mode = isinstance(answer, str) and answer in _MODES
    assert is_mode, f"wanted says {_word(answer)}; {_of(vm, host)}"
    return str(answer)


def _word(answer: Any) -> str:
    """Return an answer that is no mode, in words."""
    if isinstance(answer, str):
        return f"{shown(answer)}, which is no mode{hint(answer, _MODES)}"
    return f"{answer!r}, which is no mode; write one of {', '.join(map(shown, _MODES))}"


def _of(vm: VmView, host: HostView) -> str:
    """Return the views in short: what makes the difference, as a rule."""
    overhead = "None" if vm.overhead is None else f"{vm.overhead:g}"
    return (
        f"with vm.mode {shown(vm.mode)}, vm.mode_wanted {shown(vm.mode_wanted)}, vm.overhead {overhead}, "
        f"vm.memory_bytes {vm.memory_bytes}, host.free_bytes {host.free_bytes}"
    )


def _views() -> Iterator[tuple[VmView, HostView]]:
    """Yield a VM and its host, as they may meet."""
    for mode, wanted, overhead in product(_MODES, _MODES, _OVERHEADS):
        for host in _hosts():
            for memory, used, given in ((2 * _GIB, 2 * _GIB, 0), (48 * _GIB, _GIB, 8 * _GIB), (16 << 20, 0, 0)):
                yield (
                    VmView(
                        name=host.vms[0],
                        memory_bytes=memory,
                        used_bytes=used,
                        resident_bytes=memory if mode in ("vmm-direct", "dual-direct") else used,
                        balloon_bytes=given,
                        mode=mode,
                        mode_wanted=wanted,
                        overhead=overhead,
                    ),
                    host,
                )


def _hosts() -> Iterator[HostView]:
    """Yield hosts: free, full, and fragmented with many VMs."""
    some = tuple(f"web-{n}" for n in range(12))
    for free, largest, vms in ((90 * _GIB, 90 * _GIB, ("db",)), (0, 0, ("db", "web")), (20 * _GIB, 2 << 20, some)):
        yield HostView(memory_bytes=96 * _GIB, free_bytes=free, largest_free_bytes=largest, vms=vms)
