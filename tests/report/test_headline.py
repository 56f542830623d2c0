"""The sentence about a VM is true in every variant."""

from __future__ import annotations

from typing import Any

import pytest

from tests.made_up import HOUR, MIN, S
from vmmsim.report.headline import content, headline, is_content, names


def found(**given: Any) -> dict[str, Any]:
    """A VM that ran 4 h and waited 47 min for Dual Direct; what is given is otherwise."""
    usual = {
        "mode_wanted": "dual-direct",
        "running_ns": 4 * HOUR,
        "had_from_ns": 47 * MIN,
        "waited_ns": 47 * MIN,
        "without_ns": 47 * MIN,
        "lost_ns": [],
        "time_in_mode_ns": {"base": 47 * MIN, "dual-direct": 4 * HOUR - 47 * MIN},
        "waiting": {"share": 0.083, "time_ns": MIN, "basis": "as if"},
        "getting_there_ns": 40 * S,
        "repaid_at_ns": 47 * MIN + 2 * HOUR + 10 * MIN,
    }
    return {**usual, **given}


UNKNOWN = {"share": None, "time_ns": None, "basis": None}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {},
            "db waited 47 min for Dual Direct; waiting cost at least 8.3 % of the work done meanwhile; getting there "
            "took 40 s, repaid 2 h 10 min later.",
        ),
        (
            {"repaid_at_ns": None, "waiting": UNKNOWN},
            "db waited 47 min for Dual Direct; getting there took 40 s, which was not repaid.",
        ),
        (
            {"getting_there_ns": 0, "repaid_at_ns": 47 * MIN, "waiting": {"share": -1e-5, "basis": "as if"}},
            "db waited 47 min for Dual Direct; waiting cost nothing to speak of.",
        ),
        (
            {"getting_there_ns": 0, "waiting": {"share": 0.05, "basis": "once had"}},
            "db waited 47 min for Dual Direct; waiting cost 5 % of the work done meanwhile (by what it had later).",
        ),
        (
            {"had_from_ns": 0, "waited_ns": 0, "without_ns": 0, "getting_there_ns": None, "waiting": UNKNOWN},
            "db had Dual Direct from the start and kept it, as it wanted.",
        ),
        (
            {"had_from_ns": 0, "waited_ns": 0, "without_ns": HOUR, "lost_ns": [3 * HOUR]},
            "db had Dual Direct from the start; lost it at 3 h (a bank failed), and was without for 1 h; doing without "
            "cost at least 8.3 % of the work done meanwhile.",
        ),
        (
            {"without_ns": 50 * MIN, "lost_ns": [2 * HOUR, 3 * HOUR], "waiting": UNKNOWN, "getting_there_ns": 0},
            "db waited 47 min for Dual Direct; lost it at 2 h, 2 times in all (a bank failed), and was without for "
            "3 min.",
        ),
        (
            {"had_from_ns": None, "waited_ns": 4 * HOUR},
            "db never got Dual Direct (no window); doing without cost at least 8.3 % of the work done meanwhile.",
        ),
        (
            {"had_from_ns": None, "waited_ns": 4 * HOUR, "time_in_mode_ns": {"guest-direct": 4 * HOUR}},
            "db never got Dual Direct (no window); doing without cost 8.3 % of the work done meanwhile.",
        ),
        (
            {"mode_wanted": "vmm-direct", "had_from_ns": None, "waited_ns": 4 * HOUR},
            "db never got VMM Direct (no window); doing without cost 8.3 % of the work done meanwhile.",
        ),
        ({"running_ns": 0}, "db never ran."),
        ({"mode_wanted": ""}, "db ran without a wish for a mode."),
    ],
)
def test_each_variant(given, sentence):
    assert headline("db", found(**given), "no window", "a bank failed") == sentence


def test_without_a_reason_none_is_given():
    assert headline("db", found(had_from_ns=None, waiting=UNKNOWN)) == "db never got Dual Direct."


def test_vms_that_had_what_they_wanted_share_a_sentence():
    happy = found(had_from_ns=0, waited_ns=0, without_ns=0, mode_wanted="base")
    assert is_content(happy)
    assert not is_content(found())
    assert not is_content(found(running_ns=0, without_ns=0))
    assert content(["a", "b"], [happy, happy]) == "a and b ran in base virtualized throughout, as wanted."


@pytest.mark.parametrize(
    ("vms", "text"),
    [
        (["db"], "db"),
        (["a", "b", "c"], "a, b and c"),
        (["web-0", "web-1", "web-2", "db"], "web-0 to web-2 and db"),
        (["web-0", "web-1"], "web-0 and web-1"),
        (["web-8", "web-9", "web-10"], "web-8 to web-10"),
        (["-1", "x-y", "x-z"], "-1, x-y and x-z"),
    ],
)
def test_names_in_short(vms, text):
    assert names(vms) == text
