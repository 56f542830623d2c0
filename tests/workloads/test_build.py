"""Workloads by description: what is found, what is passed on, and one clear line for whatever is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from tests.workloads.descriptions import built
from vmmsim.errors import BadInput
from vmmsim.protocols import UserWorkload
from vmmsim.workloads.adapted import Adapted
from vmmsim.workloads.memcached import Memcached
from vmmsim.workloads.recorded import TraceWorkload

OWN = '''
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
from vmmsim.protocols import Churn, Region

class Scan:
    """Reads its pages in order, for ever."""
    def __init__(self, keys, seed=0, memory_bytes=0):
        self.keys, self.seed, self.memory_bytes = keys, seed, memory_bytes
        self.regions = [Region("all", 1000, keys)]
    def stream(self, x, n):
        return 1000 + (x + np.arange(n)) % self.keys, np.zeros(n, bool)
    def touched(self, x0, x1):
        pages, _ = self.stream(x0, min(x1 - x0, self.keys))
        return pages, pages[:0]

class Sized(Scan):
    ideal_cycles = 7
    begins = 3
    churn = Churn(cache_pages_per_s=1.0)
    def __init__(self, footprint_bytes):
        super().__init__(footprint_bytes >> 12)
    def stream(self, x, n, vcpu=0):
        return 1000 + vcpu + 0 * np.arange(n), np.zeros(n, bool)

class Shapeless:
    regions = ()
    def stream(self, x, n): ...
    def touched(self, x0, x1): ...

class Overlapping(Shapeless):
    regions = [Region("a", 0, 5), Region("b", 4, 5)]

class TwoFirst(Shapeless):
    regions = [Region("a", 0, 4, primary=True), Region("b", 4, 5, primary=True)]

class Failing:
    def __init__(self): raise ValueError("no graph\\nat all")

@dataclass
class Lacking:
    size: int = 3

number = 3
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "toy.lackey").write_text(" L 00005000,4\n S 00006000,4\n")
    (tmp_path / "notes.txt").write_text("nothing that is a trace\n")
    return tmp_path


WRONG = [
    ({}, "give one of name, trace and use"),
    ({"name": "gups", "trace": "python"}, "give one of name, trace and use, not name and trace"),
    ({"name": "gupss"}, 'name: "gupss" is unknown; did you mean "gups"?'),
    ({"name": "gups", "repeat": True}, "repeat: only a trace ends and can be repeated"),
    ({"name": "gups", "footprint_bytes": 2 << 30}, "footprint: 2 GiB do not fit the VM's memory of 1 GiB"),
    ({"name": "gups", "footprint_bytes": 4096}, "footprint: 4 KiB is too small for gups, which needs 256 KiB"),
    ({"name": "gups", "parameters": {"fotprint": "1GiB"}}, 'unknown key "fotprint"; did you mean "footprint"?'),
    ({"name": "web", "parameters": {"thta": 1}}, 'unknown key "thta"; did you mean "theta"?'),
    ({"name": "web", "parameters": {"processes": 2.5}}, "processes: 2.5 is not a whole number"),
    ({"name": "web", "parameters": {"processes": 0}}, "processes must lie from 1 to 64"),
    ({"name": "memcached", "parameters": {"item": 512}}, 'item: 512 is not a size; write e.g. "64GiB"'),
    ({"name": "memcached", "parameters": {"item": "8KiB"}}, "an item must have from 1 byte to 4 KiB"),
    ({"name": "graph500", "parameters": {"rmat_one": 0.9}}, "rmat_one must be above 0 and at most 0.5"),
    ({"name": "kernel-build", "parameters": {"jobs": 0}}, "jobs must lie from 1 to 256"),
    (
        {"trace": "pyhton"},
        "trace: neither a file in FOLDER nor a shipped trace; those are compiler, database, graph500, python",
    ),
    ({"trace": "python", "footprint_bytes": 1 << 20}, "footprint: a trace has the footprint that it was recorded with"),
    ({"trace": "python", "parameters": {"repaet": True}}, 'unknown key "repaet"; did you mean "repeat"?'),
    ({"use": "own.py:Scn"}, 'use: own.py has no "Scn"; did you mean "Scan"?'),
    ({"use": "other.py:Scan"}, "use: FOLDER/other.py cannot be read: No such file or directory"),
    (
        {"use": "broken.py:Scan"},
        "use: FOLDER/broken.py cannot be read: SyntaxError: invalid syntax (broken.py, line 1)",
    ),
    ({"use": "nowhere.at_all:Scan"}, "use: there is no module nowhere.at_all"),
    ({"use": "nothing"}, 'use: "nothing" names no code; write e.g. "file.py:Name"'),
    ({"use": "own.py:Scan"}, 'use: own.py:Scan needs "keys"'),
    ({"use": "own.py:Scan", "parameters": {"keyz": 3}}, 'use: own.py:Scan takes no "keyz"; did you mean "keys"?'),
    (
        {"use": "own.py:Scan", "parameters": {"keys": 3}, "footprint_bytes": 1 << 20},
        'use: own.py:Scan takes no "footprint_bytes"; known: "keys", "seed", "memory_bytes"',
    ),
    ({"use": "own.py:Failing"}, "use: own.py:Failing cannot be made: ValueError: no graph"),
    ({"use": "own.py:number"}, "use: own.py:number is no class, but int"),
    (
        {"use": "own.py:Lacking"},
        "use: own.py:Lacking is no workload: it has no stream(); see vmmsim.protocols.UserWorkload",
    ),
    (
        {"use": "own.py:Shapeless"},
        "use: own.py:Shapeless is no workload: regions must be a list of vmmsim.protocols.Region, at least one",
    ),
    ({"use": "own.py:Overlapping"}, "use: own.py:Overlapping: region b begins before region a ends"),
    ({"use": "own.py:TwoFirst"}, "use: own.py:TwoFirst: more than one region is primary"),
]


@pytest.mark.parametrize(("keys", "line"), WRONG, ids=[line[:40] for _, line in WRONG])
def test_what_is_wrong_is_said_in_one_line(keys, line, folder):
    with pytest.raises(BadInput) as refused:
        built(folder=folder, **keys)
    assert str(refused.value).replace(str(folder), "FOLDER") == line


def test_a_file_that_is_no_trace_is_said_to_be_none(folder):
    with pytest.raises(BadInput, match="of no format known"):
        built(folder=folder, trace="notes.txt")


def test_a_trace_is_a_file_of_the_scenarios_folder_or_else_a_shipped_one(folder):
    assert built(folder=folder, trace="toy.lackey").length == 2
    one, other = (built(folder=folder, trace=name, repeat=True) for name in ("graph500", "graph500.parquet"))
    assert isinstance(one, TraceWorkload)
    assert isinstance(other, TraceWorkload)
    assert one.held is other.held
    assert one.length is None
    (folder / "graph500.parquet").write_bytes((folder / "toy.lackey").read_bytes())
    assert built(folder=folder, trace="graph500.parquet").length == 2


def test_a_program_takes_its_share_of_memory_unless_told_otherwise():
    assert built(name="gups", memory_bytes=1 << 32).regions[0].pages == 1 << 19
    assert built(name="gups", memory_bytes=1 << 32, footprint_bytes=1 << 20).regions[0].pages == 256


def test_parameters_are_spelt_as_in_scenario_files():
    workload = built(name="memcached", footprint_bytes=1 << 20, parameters={"item": "1KiB", "set_share": 0.5})
    assert isinstance(workload, Memcached)
    assert workload.items_per_page == 4
    assert workload.set_share == 0.5


def test_a_class_of_ones_own_gets_its_keys_and_what_it_asks_for_by_name(folder):
    workload = built(folder=folder, use="own.py:Scan", parameters={"keys": 9})
    assert isinstance(workload, Adapted)
    assert isinstance(workload.user, UserWorkload)
    assert workload.user.keys == 9
    assert workload.user.memory_bytes == 1 << 30
    other = built(folder=folder, use="own.py:Scan", parameters={"keys": 9}, vm="web")
    assert isinstance(other, Adapted)
    assert workload.user.seed != other.user.seed
    assert workload.stream(7, 4)[0].tolist() == [1007, 1008, 1000, 1001]
    assert workload.touched(7, 100)[0].size == 9


def test_what_a_class_of_ones_own_leaves_out_is_added(folder):
    workload = built(folder=folder, use="own.py:Scan", parameters={"keys": 9})
    assert (workload.begins, workload.length, workload.frees(0, 10**9)) == (0, None, [])
    assert workload.ideal_cycles > 0
    assert workload.churn.cache_pages_per_s == 0
    assert np.array_equal(workload.stream(3, 5, 2)[0], workload.stream(3, 5)[0])
    read, written = workload.touched_among(np.array([1003, 1004, 2000]), 4, 5)
    assert read.tolist() == [False, True, False]
    assert not written.any()


def test_what_a_class_of_ones_own_has_is_used(folder):
    workload = built(folder=folder, use="own.py:Sized", footprint_bytes=5 << 12)
    assert (workload.ideal_cycles, workload.begins, workload.churn.cache_pages_per_s) == (7, 3, 1)
    assert workload.regions[0].pages == 5
    assert workload.stream(0, 2, 4)[0].tolist() == [1004, 1004]


def test_a_file_that_has_changed_is_read_anew(folder):
    built(folder=folder, use="own.py:Scan", parameters={"keys": 9})
    (folder / "own.py").write_text(OWN.replace("1000", "3000"))
    workload = built(folder=folder, use="own.py:Scan", parameters={"keys": 9})
    assert workload.stream(0, 1)[0].tolist() == [3000]


def test_installed_code_is_found_by_module_and_name():
    with pytest.raises(BadInput, match=r"fractions:Fraction is no workload: it has no stream\(\)"):
        built(use="fractions:Fraction")
    with pytest.raises(BadInput, match=r"collections:OrderedDict does not say what it takes"):
        built(use="collections:OrderedDict")
