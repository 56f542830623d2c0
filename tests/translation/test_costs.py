"""The linear model keeps the paper's identities, and coverage is what segments and filters say."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given

from vmmsim.config import MODES
from vmmsim.translation.costs import Coverage, Linear, numbers, sources_of

COUNT = st.integers(0, 10**6)
CYCLES = st.floats(0, 1000)


@st.composite
def models(draw: st.DrawFn) -> tuple[Linear, Coverage]:
    """Draw a model, and a coverage whose parts sum to its native misses."""
    parts = draw(st.lists(COUNT, min_size=4, max_size=4).filter(any))
    cover = Coverage(**dict(zip(("both", "vmm_only", "guest_only", "neither"), parts, strict=True)))
    native = draw(CYCLES)
    return (
        Linear(
            native_misses=cover.total,
            virtual_misses=draw(COUNT),
            native_cycles=native,
            virtual_cycles=native + draw(CYCLES),
            vmm_direct_extra=5,
            guest_direct_extra=1,
        ),
        cover,
    )


def cost(model: Linear, mode: str, cover: Coverage) -> float:
    return model.walk_cycles(MODES[mode], cover)


@given(models())
def test_full_coverage_costs_what_the_paper_says(drawn):
    model, cover = drawn
    misses = cover.total
    vmm, guest, both = (Coverage(**{name: misses}) for name in ("vmm_only", "guest_only", "both"))
    assert cost(model, "vmm-direct", vmm) == pytest.approx((model.native_cycles + 5) * misses)
    assert cost(model, "guest-direct", guest) == pytest.approx((model.native_cycles + 1) * misses)
    assert cost(model, "dual-direct", both) == 0
    assert cost(model, "dual-direct", vmm) == pytest.approx((model.native_cycles + 5) * misses)
    assert cost(model, "dual-direct", guest) == pytest.approx((model.native_cycles + 1) * misses)
    assert cost(model, "native-direct", both) == 0


@given(models())
def test_no_coverage_costs_a_walk_in_both_dimensions_for_each_native_miss(drawn):
    model, cover = drawn
    nothing = Coverage(neither=cover.total)
    for mode in ("dual-direct", "vmm-direct", "guest-direct"):
        assert cost(model, mode, nothing) == pytest.approx(model.virtual_cycles * cover.total)
    assert cost(model, "native-direct", nothing) == pytest.approx(model.native_cycles * cover.total)


@given(models())
def test_modes_without_segments_cost_their_own_average_whatever_is_covered(drawn):
    model, cover = drawn
    assert cost(model, "base", cover) == pytest.approx(model.virtual_cycles * model.virtual_misses)


@given(models())
def test_the_native_mode_costs_its_own_average(drawn):
    model, cover = drawn
    assert cost(model, "native", Coverage(neither=cover.total)) == pytest.approx(model.native_cycles * cover.total)


@given(models())
def test_a_mode_is_dual_direct_with_the_shares_it_can_have(drawn):
    model, cover = drawn
    only_vmm = Coverage(vmm_only=cover.vmm_only, neither=cover.total - cover.vmm_only)
    share = cover.vmm_only / cover.total
    expected = ((model.native_cycles + 5) * share + model.virtual_cycles * (1 - share)) * cover.total
    assert cost(model, "vmm-direct", only_vmm) == pytest.approx(expected)
    assert cost(model, "dual-direct", only_vmm) == pytest.approx(expected)


@given(models(), st.sampled_from(("vmm_only", "guest_only", "both")), st.sampled_from(("neither", "vmm_only")))
def test_more_coverage_never_costs_more(drawn, gains, loses):
    model, cover = drawn
    assume(model.native_cycles + 5 < model.virtual_cycles)
    parts = {name: getattr(cover, name) for name in ("both", "vmm_only", "guest_only", "neither")}
    assume(parts[loses] and (loses == "neither" or gains == "both"))
    parts[loses], parts[gains] = parts[loses] - 1, parts[gains] + 1
    for mode in ("dual-direct", "native-direct"):
        before, after = cost(model, mode, cover), cost(model, mode, Coverage(**parts))
        assert after <= before * (1 + 1e-12)


def test_coverages_add_up():
    a, b = Coverage(both=1, vmm_only=2, guest_only=3, neither=4), Coverage(both=10, neither=1)
    assert a + b == Coverage(both=11, vmm_only=2, guest_only=3, neither=5)
    assert (a + b).total == a.total + b.total == 21


def test_every_number_has_a_source():
    known = numbers()
    assert known["vmm_direct_extra_cycles"].value == 5
    assert known["guest_direct_extra_cycles"].value == 1
    for row in sources_of(list(known)):
        assert row["source"]
        assert row["sure"] in ("read", "derived", "recalled", "assumed")
        assert np.isfinite(row["value"])
