"""What the shipped balloon policies ask of guests: closed forms, and published numbers."""

from __future__ import annotations

from itertools import pairwise

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.actors.balloon_policies import (
    STATES,
    IdleTax,
    Proportional,
    Thresholds,
    min_free_bytes,
    next_state,
    unused,
)
from vmmsim.protocols import HostView, VmView

GIB = 1 << 30
MIB = 1 << 20


def a_vm(name: str = "a", memory: int = 16, used: float = 4, **more) -> VmView:
    """Return a VM; ``memory`` and ``used`` in GiB."""
    told = {"resident_bytes": 0, "balloon_bytes": 0, "mode": "base", "mode_wanted": "base", "overhead": None, **more}
    return VmView(name=name, memory_bytes=memory * GIB, used_bytes=int(used * GIB), **told)


def a_host(*vms: VmView, available: float, reserve: float = 4, state: str = "soft") -> HostView:
    return HostView(
        memory_bytes=96 * GIB,
        free_bytes=int(available * GIB),
        available_bytes=int(available * GIB),
        largest_free_bytes=0,
        vms=tuple(vm.name for vm in vms),
        reserve_bytes=int(reserve * GIB),
        state=state,
        guests=vms,
    )


def given_up(policy, *vms: VmView, **host) -> list[float]:
    """Return what each VM is to give up, in GiB."""
    whole = a_host(*vms, **host)
    return [(vm.memory_bytes - vm.exchanged_bytes - policy.target_bytes(vm, whole)) / GIB for vm in vms]


class TestTheReserve:
    @pytest.mark.parametrize(("gib", "mb"), [(28, 899), (72, 1349.6), (128, 1923), (144, 2086.8)])
    def test_it_is_esxi_s_min_free(self, gib: int, mb: float) -> None:
        """The published table of hosts (ESXi 6)."""
        assert min_free_bytes(gib * GIB) / MIB == pytest.approx(mb, abs=0.06)

    def test_48_gb_are_published_with_thousands(self) -> None:
        """1099 is 899 and a hundredth of 20,000; the other rows of the same table count 1024 MB to the GB."""
        assert 899 + 20_000 / 100 == 1099
        assert min_free_bytes(48 * GIB) / MIB == pytest.approx(899 + 20 * 1024 / 100)
        assert min_free_bytes(48 * GIB) / MIB == pytest.approx(1099, rel=0.005)

    def test_a_small_host_keeps_the_share_of_one_of_28_gb(self) -> None:
        assert min_free_bytes(14 * GIB) == min_free_bytes(28 * GIB) // 2


class TestStates:
    @pytest.mark.parametrize(
        ("share", "state"),
        [(1.0, "high"), (0.99, "clear"), (0.63, "soft"), (0.31, "hard"), (0.15, "low"), (0.0, "low")],
    )
    def test_they_get_worse_at_esxi_s_thresholds(self, share: float, state: str) -> None:
        assert next_state("high", round(share * 1000), 1000) == state

    def test_free_memory_about_a_threshold_does_not_make_the_state_flap(self) -> None:
        """Half the narrowest state is 0.08: swings of up to as much about 0.64 change the state once."""
        swings = 0.64 + 0.07 * np.sin(np.arange(200))
        states, state = [], "clear"
        for share in swings:
            state = next_state(state, round(share * 10**6), 10**6)
            states.append(state)
        assert sum(a != b for a, b in pairwise(["clear", *states])) == 1
        plain = [next_state("high", round(share * 10**6), 10**6) for share in swings]
        assert sum(a != b for a, b in pairwise(plain)) > 50, "without a margin it would flap"

    def test_they_get_better_beyond_the_margin(self) -> None:
        assert next_state("soft", 719, 1000) == "soft"
        assert next_state("soft", 720, 1000) == "clear"
        assert next_state("low", 2000, 1000) == "high"

    @given(st.sampled_from(STATES), st.integers(0, 3000))
    def test_a_state_is_never_better_than_what_is_free_and_settles_at_once(self, state: str, free: int) -> None:
        then = next_state(state, free, 1000)
        assert STATES.index(then) >= STATES.index(next_state("high", free, 1000))
        assert next_state(then, free, 1000) == then


class TestProportional:
    def test_each_gives_in_proportion_to_what_it_does_not_use(self) -> None:
        """3 GiB short; 12 and 6 GiB are not used: 2 and 1."""
        assert given_up(Proportional(), a_vm("a", 16, 4), a_vm("b", 16, 10), available=1) == [2, 1]

    def test_page_cache_counts_as_not_used(self) -> None:
        assert given_up(Proportional(), a_vm("a", 16, 16, cache_bytes=12 * GIB), a_vm("b", 16, 10), available=1) == [
            2,
            1,
        ]

    def test_what_was_given_up_already_is_part_of_it(self) -> None:
        """The reserve is there: who gave everything shares it with who gave nothing."""
        one, two = a_vm("a", 16, 4, balloon_bytes=3 * GIB), a_vm("b", 16, 10)
        assert given_up(Proportional(), one, two, available=4) == [2, 1]

    def test_memory_that_is_not_short_goes_back(self) -> None:
        one = a_vm("a", 16, 4, balloon_bytes=3 * GIB)
        assert given_up(Proportional(), one, available=9) == [0]
        assert given_up(Proportional(), one, available=6) == [1]

    def test_nobody_gives_more_than_it_does_not_use(self) -> None:
        assert given_up(Proportional(), a_vm("a", 16, 15), a_vm("b", 16, 16), available=0, reserve=50) == [1, 0]

    def test_what_an_event_holds_is_left_out(self) -> None:
        held = a_vm("b", 16, 4, managed=False, balloon_bytes=4 * GIB)
        assert given_up(Proportional(), a_vm("a", 16, 4), held, available=1)[0] == 3

    @given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0, 8))
    def test_together_they_give_what_is_short_or_all_they_have(self, sizes, available: float) -> None:
        vms = [a_vm(str(n), memory, memory * share) for n, (memory, share) in enumerate(sizes)]
        host = a_host(*vms, available=available)
        gone = sum(vm.memory_bytes - Proportional().target_bytes(vm, host) for vm in vms)
        short = max(host.reserve_bytes - host.available_bytes, 0)
        assert min(short, sum(map(unused, vms))) - len(vms) <= gone <= short


class TestThresholds:
    ONE, TWO = a_vm("a", 16, 4, balloon_bytes=2 * GIB), a_vm("b", 16, 10)

    @pytest.mark.parametrize("state", ["soft", "hard", "low"])
    def test_balloons_grow_from_soft_on(self, state: str) -> None:
        assert given_up(Thresholds(), self.ONE, self.TWO, available=0, state=state) == [4, 2]

    def test_they_stay_while_clear(self) -> None:
        assert given_up(Thresholds(), self.ONE, self.TWO, available=3, state="clear") == [2, 0]

    def test_they_shrink_when_high_by_what_is_above_the_reserve(self) -> None:
        assert given_up(Thresholds(), self.ONE, available=5, state="high") == [1]
        assert given_up(Thresholds(), self.ONE, self.TWO, available=4, state="high") == [pytest.approx(4 / 3), 0]


class TestIdleTax:
    def test_an_idle_page_costs_four_at_75_percent(self) -> None:
        """Equal shares, one active, one idle: at equal prices S / P and S / (4 P) the idle one has a quarter."""
        busy, idle = a_vm("a", 16, active_bytes=16 * GIB), a_vm("b", 16, active_bytes=0)
        host = a_host(busy, idle, available=0, reserve=12)
        kept = [IdleTax().target_bytes(vm, host) / GIB for vm in (busy, idle)]
        assert kept == pytest.approx([16, 4], abs=1e-6)
        host = a_host(busy, idle, available=0, reserve=22)
        assert [IdleTax().target_bytes(vm, host) / GIB for vm in (busy, idle)] == pytest.approx([8, 2], abs=1e-6)

    def test_without_a_tax_shares_alone_decide(self) -> None:
        big, small = a_vm("a", 24, active_bytes=0), a_vm("b", 8, active_bytes=8 * GIB)
        host = a_host(big, small, available=0, reserve=16)
        assert [IdleTax(tax=0).target_bytes(vm, host) / GIB for vm in (big, small)] == pytest.approx([12, 4], abs=1e-6)

    def test_what_is_not_known_counts_as_active(self) -> None:
        known, unknown = a_vm("a", 16, active_bytes=16 * GIB), a_vm("b", 16, active_bytes=None)
        host = a_host(known, unknown, available=0, reserve=8)
        assert IdleTax().target_bytes(known, host) == IdleTax().target_bytes(unknown, host)

    def test_a_host_that_has_its_reserve_takes_nothing(self) -> None:
        assert given_up(IdleTax(), a_vm(active_bytes=0, balloon_bytes=GIB), available=5) == [0]

    @given(
        st.lists(st.tuples(st.integers(1, 64), st.floats(0, 1)), min_size=2, max_size=6),
        st.floats(0.1, 0.9),
        st.sampled_from([0.0, 0.5, 0.75]),
    )
    def test_in_the_end_all_pay_the_same_for_a_page(self, sizes, room: float, tax: float) -> None:
        """Waldspurger: shares over (active + k idle) pages are equal, but for those who have all they can have."""
        vms = [a_vm(str(n), memory, active_bytes=int(memory * share * GIB)) for n, (memory, share) in enumerate(sizes)]
        total = sum(vm.memory_bytes for vm in vms)
        host = a_host(*vms, available=0, reserve=(1 - room) * total / GIB)
        kept = [IdleTax(tax=tax).target_bytes(vm, host) for vm in vms]
        assert sum(kept) == pytest.approx(room * total, rel=1e-6)
        k = 1 / (1 - tax)
        price = [
            vm.memory_bytes / (min(has, vm.active_bytes) + k * max(has - vm.active_bytes, 0))
            for vm, has in zip(vms, kept, strict=True)
        ]
        partial = [cost for cost, has, vm in zip(price, kept, vms, strict=True) if has < vm.memory_bytes - 1]
        assert max(partial, default=1) == pytest.approx(min(partial, default=1), rel=1e-3)
        full = [cost for cost, has, vm in zip(price, kept, vms, strict=True) if has >= vm.memory_bytes - 1]
        assert min(full, default=9e9) >= max(partial, default=0) * (1 - 1e-3), "who has all of it pays no less"


def test_views_are_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        a_vm().used_bytes = 0
