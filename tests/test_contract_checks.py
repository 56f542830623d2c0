"""The checks that users call find what they are for."""

from __future__ import annotations

import enum
import itertools
import random
import re
import time
from typing import Literal

import attrs
import numpy as np
import pytest

from vmmsim.actors.balloon_policies import SHIPPED
from vmmsim.protocols import Churn, Region
from vmmsim.testing import check_balloon_policy, check_mode_policy, check_workload

PAGES = 40


class Good:
    """Reads pages in order at first, and then at random, by hashing positions."""

    begins = PAGES
    churn = Churn()

    def __init__(self) -> None:
        self.regions = (Region("all", 500, PAGES),)

    def stream(self, x, n):
        at = np.arange(x, x + n)
        mixed = (at % 65_521 * 48_271 + at // 65_521 * 69_621) % 2_147_483_647 // 7
        return 500 + np.where(at < self.begins, at % PAGES, mixed % PAGES), at % 4 == 3

    def touched(self, x0, x1):
        pages, writes = self.stream(x0, x1 - x0)
        return tuple(np.array(list(dict.fromkeys(pages[kind].tolist())), np.int64) for kind in (~writes, writes))

    def frees(self, x0, x1):
        return [(x, 0) for x in range(-(-x0 // 10**6) * 10**6, x1, 10**6) if x > 0]


def test_a_workload_that_keeps_the_contract_passes():
    check_workload(Good())


class AdvancesAGenerator(Good):
    """The mistake that one makes first."""

    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(1)

    def stream(self, x, n):
        return 500 + self.random.integers(0, PAGES, n), np.zeros(n, bool)


class SeedsByCall(Good):
    """The mistake that one makes next: equal calls agree, but a call cut in two does not."""

    def stream(self, x, n):
        return 500 + np.random.default_rng(x).integers(0, PAGES, n), np.zeros(n, bool)


class LeavesItsRegions(Good):
    def stream(self, x, n):
        pages, writes = super().stream(x, n)
        return pages + (pages == 500 + PAGES - 1), writes


class ForgetsAPage(Good):
    def touched(self, x0, x1):
        return tuple(pages[pages != 507] for pages in super().touched(x0, x1))


class ForgetsTheOrder(Good):
    def touched(self, x0, x1):
        return tuple(pages[::-1] for pages in super().touched(x0, x1))


class TellsPagesTwice(Good):
    def touched(self, x0, x1):
        return tuple(np.repeat(pages, 2) for pages in super().touched(x0, x1))


class TouchesTooFew(Good):
    """Right while it begins; a sample afterwards."""

    def touched(self, x0, x1):
        return super().touched(x0, x1 if x1 <= PAGES else x0 + (x1 - x0) // 400)


class SaysSomethingElseOfSome(Good):
    def touched_among(self, pages, x0, x1):
        return np.ones(pages.size, bool), np.zeros(pages.size, bool)


class FreesByCall(Good):
    def frees(self, x0, x1):
        return [(x0, 0)]


class GoesOnAfterItsEnd(Good):
    length = 100_000


class ReadsWhatItWrites(Good):
    def stream(self, x, n):
        pages, writes = super().stream(x, n)
        return pages, writes if x > 0 else ~writes


WRONG = [
    (AdvancesAGenerator, r"stream\(0, 1000\) cut after 0 accesses differs in gvpn"),
    (SeedsByCall, r"cut after 333 accesses differs in gvpn"),
    (LeavesItsRegions, r"leaves the regions"),
    (ForgetsAPage, r"touched\(.*\) is not what stream touches, in its order"),
    (ForgetsTheOrder, r"touched\(.*\) is not what stream touches, in its order"),
    (TellsPagesTwice, r"a page stands there twice"),
    (TouchesTooFew, r"touched tells of -\d+\.\d pages read in 1000 accesses"),
    (SaysSomethingElseOfSome, r"touched_among says something else"),
    (FreesByCall, r"frees\(.*\) cut at \d+ differs"),
    (GoesOnAfterItsEnd, r"stream\(\d+, 1000\) has \(1000,\), not \(\d+,\)"),
    (ReadsWhatItWrites, r"differs in is_write"),
]


@pytest.mark.parametrize(("kind", "line"), WRONG, ids=[kind.__name__ for kind, _ in WRONG])
def test_a_workload_that_does_not_is_caught(kind, line):
    with pytest.raises(AssertionError) as caught:
        check_workload(kind())
    assert re.search(line, str(caught.value)), str(caught.value)


# Mode policies


class Thrifty:
    """Segments while walks cost much, and those there are."""

    def wanted(self, vm, host):
        if vm.mode != "base":
            return vm.mode
        return "vmm-direct" if vm.overhead is not None and vm.overhead > 0.1 else "base"


@attrs.frozen
class Roomy:
    """Goes by the host, and gives in: it stops wanting what a full host refuses."""

    share: float = 0.1
    mode: Literal["dual-direct", "guest-direct"] = "dual-direct"

    def wanted(self, vm, host):
        return self.mode if host.free_bytes > self.share * host.memory_bytes or vm.mode == self.mode else "base"


class Named(enum.StrEnum):
    FAST = "dual-direct"


class ByName:
    def wanted(self, vm, host):
        return Named.FAST if vm.name == "db" else "base"


@pytest.mark.parametrize(
    "policy",
    [Thrifty(), Roomy(), Roomy(mode="guest-direct"), ByName()],
    ids=["thrifty", "roomy", "roomy in Guest Direct", "by name"],
)
def test_a_mode_policy_that_keeps_the_contract_passes(policy):
    check_mode_policy(policy)


class ForgetsThatNothingIsKnown:
    """The mistake that one makes first: before the first sample there is no overhead."""

    def wanted(self, vm, host):
        return "vmm-direct" if vm.overhead > 0.1 else "base"


class DividesByFreeMemory:
    def wanted(self, vm, host):
        return "base" if vm.memory_bytes / host.free_bytes > 1 else "vmm-direct"


class Misspells:
    def wanted(self, vm, host):
        return "dual-drect" if vm.memory_bytes > 1 << 32 else "base"


class WantsAModeOfHardwareWithoutVms:
    def wanted(self, vm, host):
        return "native"


class SaysNothingOnAFullHost:
    def wanted(self, vm, host):
        if host.free_bytes:
            return "base"
        return None


class GivesUpAfterRefusals:
    """It counts how often it was asked, which is not its affair."""

    def __init__(self):
        self.refused = 0

    def wanted(self, vm, host):
        self.refused += vm.mode != vm.mode_wanted
        return "base" if self.refused > 5 else "dual-direct"


class Draws:
    def __init__(self):
        self.random = random.Random(1)

    def wanted(self, vm, host):
        return self.random.choice(["base", "vmm-direct"])


class LooksAtAClock:
    def wanted(self, vm, host):
        return "base" if time.perf_counter_ns() // 1000 % 2 else "vmm-direct"


class Alternates:
    def __init__(self):
        self.turns = itertools.cycle(["base", "vmm-direct", "dual-direct"])

    def wanted(self, vm, host):
        return next(self.turns)


class SetsTheMode:
    def wanted(self, vm, host):
        vm.mode_wanted = "dual-direct"
        return "dual-direct"


class SetsTheModeByForce:
    def wanted(self, vm, host):
        object.__setattr__(vm, "mode_wanted", "dual-direct")
        return "dual-direct"


class Yields:
    def wanted(self, vm, host):
        yield "base"


class TakesTheVmOnly:
    def wanted(self, vm):
        return "base"


class HasNoMethod:
    def want(self, vm, host):
        return "base"


class AnswersInBits:
    def wanted(self, vm, host):
        return (True, False)


WRONG_POLICIES = [
    (ForgetsThatNothingIsKnown, r"wanted raises TypeError: '>' not supported.*; with vm\.mode .*vm\.overhead None"),
    (DividesByFreeMemory, r"wanted raises ZeroDivisionError: .*host\.free_bytes 0$"),
    (Misspells, r'wanted says "dual-drect", which is no mode; did you mean "dual-direct"\?; with'),
    (WantsAModeOfHardwareWithoutVms, r'wanted says "native", which is no mode'),
    (SaysNothingOnAFullHost, r'wanted says None, which is no mode; write one of "base", .*host\.free_bytes 0$'),
    (GivesUpAfterRefusals, r'wanted says "base", and said "dual-direct" of the same views'),
    (Draws, r"of the same views: it must not remember, draw or look at a clock"),
    (LooksAtAClock, r"of the same views"),
    (Alternates, r"of the same views"),
    (SetsTheMode, r"wanted raises FrozenInstanceError"),
    (SetsTheModeByForce, r"wanted changes what it is shown"),
    (Yields, r"wanted yields: a policy has no clock"),
    (TakesTheVmOnly, r"wanted raises TypeError: .*takes 2 positional arguments"),
    (HasNoMethod, r"HasNoMethod has no method wanted\(vm, host\)"),
    (AnswersInBits, r"wanted says \(True, False\), which is no mode; write one of"),
]


@pytest.mark.parametrize(("kind", "line"), WRONG_POLICIES, ids=[kind.__name__ for kind, _ in WRONG_POLICIES])
def test_a_mode_policy_that_does_not_is_caught_in_one_line(kind, line):
    with pytest.raises(AssertionError) as caught:
        check_mode_policy(kind())
    assert re.search(line, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_is_not_a_policy():
    with pytest.raises(AssertionError, match=r"Thrifty is a class: check what it makes, Thrifty\(\)"):
        check_mode_policy(Thrifty)


# Balloon policies


class KeepFree:
    """Lets every guest keep a tenth of its memory free."""

    def target_bytes(self, vm, host):
        return vm.used_bytes + vm.memory_bytes // 10


@pytest.mark.parametrize("policy", [KeepFree, *SHIPPED.values()])
def test_a_balloon_policy_that_keeps_the_contract_passes(policy):
    check_balloon_policy(policy())


class Remembers(KeepFree):
    """Asks for more each time."""

    def __init__(self):
        self.asked = 0

    def target_bytes(self, vm, host):
        self.asked += 1
        return vm.memory_bytes // self.asked


class Draws(KeepFree):
    def target_bytes(self, vm, host):
        return int(np.random.default_rng().integers(0, vm.memory_bytes))


class Divides(KeepFree):
    """Forgets that a guest may use nothing."""

    def target_bytes(self, vm, host):
        return vm.memory_bytes * vm.resident_bytes // vm.used_bytes


class TrustsTheEstimate(KeepFree):
    """Forgets that nothing may be known of a guest."""

    def target_bytes(self, vm, host):
        return vm.active_bytes + (1 << 30)


class Shares(KeepFree):
    """Forgets the brackets."""

    def target_bytes(self, vm, host):
        return vm.memory_bytes * 0.9


class TakesTooMuch(KeepFree):
    """Forgets that a balloon ends at nothing."""

    def target_bytes(self, vm, host):
        return vm.used_bytes - (host.reserve_bytes - host.available_bytes)


class WritesDown(KeepFree):
    """Keeps its books in what it is shown."""

    def target_bytes(self, vm, host):
        object.__setattr__(vm, "balloon_bytes", vm.balloon_bytes + 4096)
        return vm.memory_bytes


class SaysNothing(KeepFree):
    def target_bytes(self, vm, host):
        if host.state == "low":
            return 0
        return None


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Remembers, "when asked again"),
        (Draws, "when asked again"),
        (Divides, "raises ZeroDivisionError"),
        (TrustsTheEstimate, "raises TypeError"),
        (Shares, "which is no int"),
        (TakesTooMuch, "less than nothing"),
        (WritesDown, "changes what it is shown"),
        (SaysNothing, "is None, which is no int"),
    ],
)
def test_a_balloon_policy_that_does_not_is_caught(policy, said: str):
    with pytest.raises(AssertionError, match=re.escape(said)):
        check_balloon_policy(policy())
