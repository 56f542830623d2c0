"""Scenario files: what they say, what is refused and in which words, and what comes out of them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import scenarios as made
from vmmsim import strict
from vmmsim.errors import BadInput
from vmmsim.overrides import replaced
from vmmsim.paths import every_path
from vmmsim.scenario import (
    VM,
    BalloonEvent,
    BalloonPolicy,
    CompactEvent,
    Escape,
    Event,
    FaultEvent,
    Host,
    LoadStep,
    Run,
    Scenario,
    ShutdownEvent,
    Workload,
)
from vmmsim.scenario_checks import check_scenario
from vmmsim.scenario_file import checked, load_scenario, machine_of, resolved, scenario_path, trace_of
from vmmsim.scenarios_folder import scenarios_folder, shipped_scenarios

GIB = 1 << 30
HOUR = 3600 * 10**9


def write(folder: Path, text: str, name: str = "day.toml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def problems_of(folder: Path, text: str, *overrides: str) -> list[str]:
    """Return the lines that a bad file is refused with, as if it lay in the working directory."""
    file = write(folder, text)
    with pytest.raises(BadInput) as caught:
        load_scenario(file, overrides)
    return [str(problem).replace(file, "day.toml") for problem in caught.value.problems]


def test_the_five_lines_that_users_were_promised(tmp_path: Path) -> None:
    text = """
    [host]
    memory = "96GiB"
    [vm.db]
    memory = "64GG"
    mode = "dual-drect"
    vcpu = 2
    vcpus = 2.7
    [[event]]
    at = "1h"
    do = "baloon"
    """
    assert problems_of(tmp_path, text) == [
        'day.toml: vm.db.memory: "64GG" is not a size; write e.g. "64GiB"',
        'day.toml: vm.db.mode: "dual-drect" is unknown; did you mean "dual-direct"?',
        'day.toml: vm.db: unknown key "vcpu"; did you mean "vcpus"?',
        "day.toml: vm.db.vcpus: 2.7 is not a whole number",
        'day.toml: event[0]: do = "baloon" is unknown; did you mean "balloon"?',
    ]


# --- what is refused ---

GOOD = """
[run]
until = "2h"
[host]
memory = "16GiB"
[vm.db]
memory = "8GiB"
workload = { name = "gups", footprint = "4GiB" }
[vm.web]
count = 2
memory = "2GiB"
workload = { name = "web", load = [["0h", 0.5], ["1h", 1.0]] }
[[event]]
at = "1h"
do = "balloon"
vm = "db"
target = "6GiB"
[measure]
every = "10s"
"""

UNTIL = 'until = "2h"'
HOST = 'memory = "16GiB"'
DB = 'memory = "8GiB"'
DB_WORK = 'name = "gups", footprint = "4GiB"'
WEB = 'memory = "2GiB"'
LOAD = '[["0h", 0.5], ["1h", 1.0]]'
DO = 'do = "balloon"\nvm = "db"\ntarget = "6GiB"'
EVERY = 'every = "10s"'

BAD: list[tuple[str, str, str]] = [
    # what of GOOD is replaced, by what, and what is said: values of the wrong kind
    (HOST, "", 'host: "memory" is missing'),
    (HOST, 'memory = "16GB"', 'host.memory: "16GB" is not a size; write e.g. "64GiB"'),
    (HOST, 'memory = "16385MiB"', "host.memory: 16385MiB is not a multiple of 2MiB, at least one"),
    (HOST, f'{HOST}\nmachine = "skylak"',
     'host.machine: "skylak" is neither a file nor one of sandy-bridge-2012, sapphire-rapids, skylake, zen-4; '
     'did you mean "skylake"?'),
    (HOST, f'{HOST}\ncompaction = {{ bandwidth = "1GiB" }}',
     'host.compaction.bandwidth: "1GiB" is not a rate; write e.g. "1GiB/s"'),
    (HOST, f"{HOST}\nkernelcore = \"32GiB\"", "host.kernelcore: 32GiB is more than the host has, 16GiB"),
    (HOST, f"{HOST}\n[vms.a]\nmemory = \"1GiB\"", 'unknown key "vms"; did you mean "vm"?'),
    (UNTIL, 'until = "2hours"', 'run.until: "2hours" is not a duration; write e.g. "1d2h30m" or "10ms"'),
    (UNTIL, f"{UNTIL}\nscale = 3", "run.scale: 3 is not a power of two"),
    (UNTIL, f'{UNTIL}\nscript = "life.py"',
     'run.script: "life.py" does not name a function; write e.g. "life.py:life"'),
    (UNTIL, f'{UNTIL}\nscript = "life.py:life"', 'run.script: there is no file "life.py" beside the scenario'),
    (UNTIL, f'{UNTIL}\ncosts = ["liner"]',
     'run.costs[0]: "liner" is unknown; did you mean "linear"?; code of your own is "file.py:Name"'),
    (DB, f"{DB}\nvcpus = 0", "vm.db.vcpus: 0 is not between 1 and 1024"),
    (DB, f'{DB}\nmode_policy = "papr"',
     'vm.db.mode_policy: "papr" is unknown; did you mean "paper"?; code of your own is "file.py:Name"'),
    (DB, f"{DB}\nescape_filter = {{ bits = 100 }}",
     "vm.db.escape_filter.bits: 100 bits for 4 hashes; hashes must be 1 to 4, and bits / hashes a power of two "
     "from 2 to 4096, or bits 0 for no filter"),
    (DB_WORK, 'name = "gupps"', 'vm.db.workload.name: "gupps" is unknown; did you mean "gups"?'),
    (DB_WORK, 'name = "gups", trace = "database"',
     "vm.db.workload: give one of name, trace and use, not name and trace"),
    (DB_WORK, 'footprint = "4GiB"', "vm.db.workload: give one of name, trace and use"),
    (DB_WORK, 'name = "gups", footprnt = "4GiB"',
     'vm.db.workload: unknown key "footprnt"; did you mean "footprint"?'),
    (DB_WORK, 'name = "gups", repeat = true', "vm.db.workload.repeat: only a trace ends and can be repeated"),
    (DB_WORK, 'trace = "mine.parquet"',
     'vm.db.workload.trace: "mine.parquet" is neither a file beside the scenario nor a shipped trace'),
    (DB_WORK, 'use = "btree.py:BTree", keys = 5',
     'vm.db.workload.use: there is no file "btree.py" beside the scenario'),
    (LOAD, '[["0h", 50]]', "vm.web.workload.load[0][1]: 50 is not between 0 and 1"),
    (LOAD, '[["1h", 1.0], ["30m", 0.5]]', "vm.web.workload.load[1]: 30m does not come after the step before it"),
    (LOAD, '[["1h"]]', "vm.web.workload.load[0]: 1 values where 2 belong: [at, share]"),
    ("[vm.db]", '[vm."d b"]', 'vm."d b": "d b" is no name of a VM; use letters, digits, - and _\n'
     'event[0].vm: no VM is called "db"; did you mean "d b"?'),
    (DO, DO.replace("target", "traget"), 'event[0]: "target" is missing\n'
     'event[0]: unknown key "traget"; did you mean "target"?'),
    (DO, 'do = "balloon"\nvm = "db"\ntarget = "off"',
     'event[0].target: "off" is not a size; write e.g. "64GiB" or "auto"'),
    (DO, 'vm = "db"', 'event[0]: "do" is missing'),
    (DO, 'do = "hot_add"\nvm = "db"\nsize = "200MiB"',
     "event[0].size: 200MiB is not a multiple of 128MiB, the size of a memory block; write e.g. 128MiB or 256MiB"),
    (DO, 'do = "fault"\nfault = "bit"\ngfn = 5', "event[0].gfn: a guest frame needs its vm"),
    (EVERY, 'as_if = ["base", "base"]', "measure.as_if: names a mode twice"),
    ("[measure]\n" + EVERY, "[sweep]\nreplications = 3\nuntil_half_width = 0.1",
     "sweep.until_half_width: replications says how many runs already; write one of them"),
    ("[measure]\n" + EVERY, '[sweep.arms.big]\n"vm.db.memroy" = "1GiB"',
     'sweep.arms.big."vm.db.memroy": vm.db: unknown key "memroy"; did you mean "memory"?'),
    ("[measure]\n" + EVERY, '[sweep.vary]\n"vm.dbb.vcpus" = [1, 2]',
     'sweep.vary."vm.dbb.vcpus"[0]: "dbb" is not in the file; did you mean "db"?\n'
     'sweep.vary."vm.dbb.vcpus"[1]: "dbb" is not in the file; did you mean "db"?'),
    ("[measure]\n" + EVERY, '[[actor]]\nuse = "Nightly"',
     'actor[0].use: "Nightly" does not name a class; write e.g. "backup.py:Nightly"'),

    # swap devices
    (HOST, f'{HOST}\nswap = {{ device = "nmve", size = "8GiB" }}',
     'host.swap.device: "nmve" is unknown; did you mean "nvme"?'),
    (DB, f'{DB}\nswap = {{ device = "tape", size = "8GiB" }}',
     'vm.db.swap.device: "tape" is unknown; known: "zram", "nvme", "sata-ssd", "hdd"'),

    # balloon policies
    (HOST, f'{HOST}\nballoon = {{ policy = "keep.py:KeepFree", share = 0.2 }}',
     'host.balloon.policy: there is no file "keep.py" beside the scenario'),
    (HOST, f'{HOST}\nballoon = {{ policy = "proportionl" }}',
     'host.balloon.policy: "proportionl" is unknown; did you mean "proportional"?; '
     'code of your own is "file.py:Name"'),
    (HOST, f'{HOST}\nballoon = {{ policy = "idle-tax", tx = 0.5 }}',
     'host.balloon.tx: unknown key "tx" of policy "idle-tax"; did you mean "tax"?'),
    (HOST, f'{HOST}\nballoon = {{ policy = "idle-tax", tax = 1 }}',
     "host.balloon.tax: 1 is not a share of at least 0 and less than 1"),
    (HOST, f'{HOST}\nballoon = {{ policy = "proportional", every = "0s" }}',
     "host.balloon.every: must be more than 0"),
    (HOST, f'{HOST}\nballoon = {{ policy = "proportional", reserve = "16GiB" }}',
     "host.balloon.reserve: 16GiB is not less than the host has, 16GiB (host.memory)"),

    # what does not go together
    (DB, 'memory = "32GiB"', "vm.db.memory: 32GiB is more than the host has, 16GiB (host.memory)"),
    (DB_WORK, 'name = "gups", footprint = "9GiB"', "vm.db.workload.footprint: 9GiB is more than the VM's memory, 8GiB"),
    (DB, f'{DB}\nboot = "3h"', "vm.db.boot: 3h is not before the end of the run, 2h (run.until)\n"
     "event[0].at: db boots only at 3h (vm.db.boot)"),
    (DB, f'{DB}\nboot = "90m"', "event[0].at: db boots only at 1h30m (vm.db.boot)"),
    ('at = "1h"', 'at = "2h"', "event[0].at: 2h is not before the end of the run, 2h (run.until)"),
    ('vm = "db"', 'vm = "dbb"', 'event[0].vm: no VM is called "dbb"; did you mean "db"?'),
    ('vm = "db"', 'vm = ""', 'event[0].vm: no VM is called ""; known: "db", "web-0", "web-1"'),
    ('vm = "db"', 'vm = "web"', 'event[0].vm: "web" is 2 VMs; write "web-*" for all of them, or e.g. "web-0"'),
    ('vm = "db"', 'vm = "wbe-*"', 'event[0].vm: "wbe-*" selects no VM; did you mean "web-1"?'),
    ('vm = "db"', 'vm = "web-*"', "event[0].target: 6GiB is more than web-0 has, 2GiB"),
    (DO, 'do = "shutdown"\nvm = "db"\n[[event]]\nat = "90m"\n' + DO,
     "event[1].at: db is shut down since 1h (event[0])"),
    (DO, 'do = "boot"\nvm = "db"', "event[0]: db boots at 0s already (vm.db.boot)"),
    (DO, 'do = "migrate"\nvm = "db"\nbandwidth = "0B/s"', "event[0].bandwidth: must be more than 0"),
    (DO, 'do = "migrate"\nvm = "db"\nthen = "stay"\n[[event]]\nat = "90m"\ndo = "boot"\nvm = "db"',
     "event[1]: db boots at 0s already (vm.db.boot)"),
    (DO, 'do = "hot_add"\nvm = "db"\nsize = "9GiB"',
     "event[0].size: db would have 17GiB, and the host has 16GiB (host.memory)"),
    (DO, 'do = "hot_remove"\nvm = "web-0"\nsize = "2GiB"', "event[0].size: 2GiB is all that web-0 has, 2GiB"),
    (DO, 'do = "self_balloon"\nvm = "web-0"\nsize = "3GiB"', "event[0].size: 3GiB is more than web-0 has, 2GiB"),
    (DO, 'do = "reclaim_io_gap"\nvm = "web-1"', "event[0].vm: with pc-1.4, 2GiB of web-1 have no gap in them"),
    (DO, 'do = "mode"\nvm = "web-0"\nmode = "guest-direct"',
     'event[0].mode: "guest-direct" needs a workload with a primary region, and "web" has none; '
     '"vmm-direct" can be reached'),
    (DO, 'do = "fault"\nfault = "bit"\nvm = "db"\nsegment = true',
     'event[0].segment: db wants "base" at that time, which has no VMM segment'),
    (DO, 'do = "fault"\nfault = "bit"\nhfn = 4194304',
     "event[0].hfn: 4194304 lies beyond the last frame of the host, 4194303"),
    (WEB, f'{WEB}\nio_gap = "reclaim"',
     "vm.web.io_gap: with pc-1.4, 2GiB of memory lie below the gap in one piece; remove this key"),
    (WEB, f'{WEB}\nmode = "dual-direct"',
     'vm.web.mode: "dual-direct" needs a workload with a primary region, and "web" has none; '
     '"vmm-direct" can be reached'),
    ("workload = { " + DB_WORK + " }", 'mode = "guest-direct"',
     'vm.db.mode: "guest-direct" needs a workload with a primary region, and this VM has no workload; '
     '"vmm-direct" can be reached'),
    (HOST, f'{HOST}\nkernelcore = "12GiB"\n[vm.wide]\nmemory = "8GiB"\nmode = "vmm-direct"\n',
     'vm.wide.mode: "vmm-direct" needs 4.5 GiB of host memory in one piece, and beside its kernel (12 GiB, '
     'host.kernelcore) the host has 4 GiB; "base" can be reached'),
    (HOST, f'{HOST}\nfaults = {{ rates = "jaguar-ddr2" }}',
     'host.faults: needs host.dimms, to know how many devices can fail; '
     'write e.g. dimms = { count = 16, ranks = 2, width = "x4" }'),
    (UNTIL + "\n[host]\n" + HOST,
     f'{UNTIL}\ndetail = "lifetime"\n[host]\n{HOST}\ncompaction = {{ bandwidth = "1GiB/s" }}',
     'host.compaction: compaction wakes up every 500ms, and run.detail = "lifetime" has nothing periodic; '
     "write proactiveness = 0, which compacts on demand only"),
    (EVERY, 'every = "1us"',
     "measure.every: 1us makes 7,200,000,000 rows of each VM until 2h, and 1,000,000 is the most; "
     "write at least 8ms"),
    (UNTIL, f"{UNTIL}\nscale = 8192", "run.scale: vm.db.memory of 8GiB divided by 8192 is no multiple of 2MiB\n"
     "run.scale: vm.web.memory of 2GiB divided by 8192 is no multiple of 2MiB"),
    ("[measure]", '[vm.web-1]\nmemory = "1GiB"\n[measure]',
     'vm.web: count makes "web-1", which [vm.web-1] is called already'),
    ('[vm.web]\ncount = 2\nmemory = "2GiB"\nworkload = { name = "web"',
     '[vm.web]\ncount = 3\nmemory = "8GiB"\nworkload = { name = "web", footprint = "5GiB"',
     "host.memory: 16GiB cannot hold the footprints of what runs at 0s: web-0 5GiB, web-1 5GiB, web-2 5GiB and 1 more, "
     "19GiB in all"),
]  # fmt: skip


def test_the_good_file_is_good(tmp_path: Path) -> None:
    assert load_scenario(write(tmp_path, GOOD)).vm["db"].memory_bytes == 8 * GIB


@pytest.mark.parametrize(("old", "new", "said"), BAD, ids=[said.split("\n")[0][:60] for _, _, said in BAD])
def test_a_bad_scenario_is_refused_with_what_would_be_right(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert GOOD.count(old) == 1
    lines = problems_of(tmp_path, GOOD.replace(old, new))
    assert [line.removeprefix("day.toml: ") for line in lines] == said.split("\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["is empty"]),
        ("[run]\n", ['"host" is missing; write e.g. [host] and memory = "96GiB"',
                     'no VM; a scenario needs one, e.g. [vm.db] and memory = "8GiB"']),
        ('vm = 3\n[host]\nmemory = "1GiB"', ["vm: 3 is not a table"]),
        ('event = 3\n[host]\nmemory = "1GiB"\n[vm.a]\nmemory = "1GiB"',
         ["event: 3 is not a list; write [[event]] above each"]),
        ('[host]\nmemory = "1GiB"\n[vm.a]\nmemory = "1GiB"\n[event]\nat = "1h"',
         ["event: a table is not a list; write [[event]] above each"]),
        ("[host\n", ["line 1, column 6: is not TOML: expected ']' at the end of a table declaration"]),
    ],
)  # fmt: skip
def test_files_without_what_every_scenario_has(tmp_path: Path, text: str, said: list[str]) -> None:
    assert problems_of(tmp_path, text) == [f"day.toml: {line}" for line in said]


def test_mistakes_of_all_kinds_are_named_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """
    [run]
    until = "1h"
    [host]
    memory = "16GiB"
    swap = { device = "nvme", size = "1GiB" }
    thp = "sometimes"
    [vm.db]
    memory = "8GiB"
    workload = { name = "gups", footprint = "9GiB" }
    [vm.x]
    memory = 3
    [[event]]
    at = "2h"
    do = "compact"
    [[event]]
    at = "2m"
    do = "shutdown"
    vm = "x"
    """
    assert problems_of(tmp_path, text) == [
        'day.toml: host.thp: "sometimes" is unknown; known: "always", "never"',
        "day.toml: vm.db.workload.footprint: 9GiB is more than the VM's memory, 8GiB",
        'day.toml: vm.x.memory: 3 is not a size; write e.g. "64GiB"',
        "day.toml: event[0].at: 2h is not before the end of the run, 1h (run.until)",
    ]


def test_a_broken_machine_file_is_told_of_at_the_key_that_names_it(tmp_path: Path) -> None:
    write(tmp_path, 'base = "skylake"\nlevels = 3\n', "mine.toml")
    assert problems_of(tmp_path, GOOD.replace(HOST, f'{HOST}\nmachine = "mine.toml"')) == [
        'day.toml: host.machine: "mine.toml": levels: must be 4 or 5, not 3'
    ]


def test_a_wrong_name_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(BadInput) as caught:
        load_scenario("hard-fault")
    names = ", ".join(shipped_scenarios())
    assert (
        str(caught.value) == f'scenario "hard-fault" is neither a file nor one of {names}; did you mean "hard-faults"?'
    )
    with pytest.raises(BadInput, match=r"^nowhere\.toml: no such file$"):
        load_scenario("nowhere.toml")


JUNK = st.sampled_from(
    ["", "x", "*", "web-*", "1GiB", "0B", "1h", "0s", -1, 0, 1, 2.5, True, [], {}, [[]], [{}], {"a": 1}]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("junk")


@given(data=st.data())
def test_whatever_stands_in_a_file_it_is_read_or_refused_in_single_lines(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(shipped_scenarios())))
    plain = strict.load_toml(shipped_scenarios()[name])
    for _ in range(data.draw(st.integers(1, 3))):
        paths = [path for path in every_path(plain) if path]
        plain = replaced(plain, data.draw(st.sampled_from(paths)), data.draw(JUNK))
    file = write(folder, made.toml(plain))
    try:
        load_scenario(file)
    except BadInput as bad:
        lines = [str(problem) for problem in bad.problems]
    else:
        lines = []
    assert all(line.startswith(f"{file}: ") and "\n" not in line for line in lines)


# --- what comes out ---


@pytest.mark.parametrize("name", shipped_scenarios())
def test_a_shipped_scenario_loads_by_name_and_by_path(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario == load_scenario(shipped_scenarios()[name])
    assert all(vm.count is None for vm in scenario.vm.values())
    assert machine_of(scenario).name == "sandy-bridge-2012"


def test_the_scenarios_that_were_promised_are_shipped() -> None:
    assert list(shipped_scenarios()) == [
        "accelerated-faults",
        "churn",
        "consolidated-day",
        "fragmented-database",
        "fragmented-guest",
        "hard-faults",
        "hot-add",
        "io-gap",
        "migration",
        "overcommit",
        "sharing",
    ]


def test_what_a_day_of_one_host_says() -> None:
    day = load_scenario("consolidated-day")
    assert list(day.vm) == ["db", *(f"web-{n}" for n in range(8)), "batch"]
    assert (day.host.memory_bytes, day.host.age_ns, day.run.until_ns) == (96 * GIB, 30 * 24 * HOUR, 24 * HOUR)
    assert day.vm["web-7"].workload == Workload(
        name="web",
        footprint_bytes=4 * GIB,
        load=(
            LoadStep(at_ns=0, share=0.2),
            LoadStep(at_ns=8 * HOUR, share=1.0),
            LoadStep(at_ns=19 * HOUR, share=0.2),
        ),
    )
    assert day.event == (
        BalloonEvent(at_ns=12 * HOUR + HOUR // 2, vm="db", target_bytes=40 * GIB),
        BalloonEvent(at_ns=14 * HOUR, vm="db", target_bytes=None),
        *(ShutdownEvent(at_ns=19 * HOUR, vm=f"web-{n}") for n in range(8)),
    )


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 'base = "skylake"\n', "mine.toml")
    (tmp_path / "life.py").touch()
    (tmp_path / "mine.parquet").write_bytes(b"?")
    text = GOOD.replace(HOST, f'{HOST}\nmachine = "mine.toml"').replace(DB_WORK, 'trace = "mine.parquet"')
    file = write(tmp_path, text.replace(UNTIL, f'{UNTIL}\nscript = "life.py:life"'))
    monkeypatch.chdir("/")
    scenario = load_scenario(file)
    assert machine_of(scenario).name == "mine"
    assert trace_of(scenario, scenario.vm["db"]) == tmp_path / "mine.parquet"
    assert trace_of(scenario, scenario.vm["web-0"]) is None


def test_a_shipped_trace_is_found_by_name_with_or_without_its_ending(tmp_path: Path) -> None:
    for name in ("database", "database.parquet"):
        scenario = load_scenario(write(tmp_path, GOOD.replace(DB_WORK, f'trace = "{name}"')))
        assert trace_of(scenario, scenario.vm["db"]) == scenarios_folder() / "traces" / "database.parquet"


def test_a_file_beside_the_working_directory_wins_over_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert scenario_path("io-gap").parent == scenarios_folder()
    (tmp_path / "io-gap").write_text(GOOD, encoding="utf-8")
    assert scenario_path("io-gap") == Path("io-gap")


def test_keys_that_no_field_takes_are_arguments_of_ones_own_code(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    text = GOOD.replace(DB_WORK, 'use = "mine.py:BTree", keys = 10, parameters = { a = [1] }, footprnt = "x"')
    scenario = load_scenario(write(tmp_path, text + '[[actor]]\nuse = "mine.py:Nightly"\nat = "1h"\n'))
    workload = scenario.vm["db"].workload
    assert workload is not None
    assert workload.parameters == {"keys": 10, "parameters": {"a": [1]}, "footprnt": "x"}
    assert scenario.actor[0].parameters == {"at": "1h"}


def test_a_sweep_is_kept_as_it_is_written() -> None:
    sweep = load_scenario("hard-faults").sweep
    assert sweep is not None
    assert (sweep.replications, list(sweep.arms)) == (1000, ["no filter", "64 bits", "256 bits", "base"])


# --- --set ---


def test_values_can_be_set_by_the_paths_that_messages_print(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    scenario = load_scenario(
        file,
        [
            "vm.db.memory=12GiB",
            "vm.web.count=3",
            "vm.db.escape_filter.bits=0",
            "event[0].target=auto",
            "vm.web.workload.load[1][1]=0.75",
            'measure.as_if=["base"]',
        ],
    )
    assert scenario.vm["db"].memory_bytes == 12 * GIB
    assert scenario.vm["db"].escape_filter == Escape(bits=0)
    assert scenario.event == (BalloonEvent(at_ns=HOUR, vm="db", target_bytes=None),)
    assert scenario.measure.as_if == ("base",)
    workload = scenario.vm["web-2"].workload
    assert workload is not None
    assert workload.load[1].share == 0.75


def test_a_value_that_was_set_is_to_blame_for_its_own_mistakes(tmp_path: Path) -> None:
    assert problems_of(tmp_path, GOOD.replace(EVERY, "every = 3"), "vm.db.memory=64GG", "vm.web.moed=base") == [
        '--set: vm.db.memory: "64GG" is not a size; write e.g. "64GiB"',
        '--set: vm.web: unknown key "moed"; did you mean "mode"?',
        'day.toml: measure.every: 3 is not a duration; write e.g. "1d2h30m" or "10ms"',
    ]


def test_a_setting_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    assert problems_of(tmp_path, GOOD, "vm.dbb.memory=1GiB", "event[1].at=1h", "vm.db.memory.x=1", "memory") == [
        '--set: vm: "dbb" is not in the file; did you mean "db"?',
        "--set: event[1]: event has 1 entries, the first of them [0]",
        '--set: vm.db.memory.x: vm.db.memory is "8GiB", and no table',
        '--set: "memory" is no path=value; write e.g. vm.db.memory=32GiB',
    ]


# --- descriptions from Python ---


def test_descriptions_made_in_python_are_checked_the_same_way() -> None:
    scenario = Scenario(
        host=Host(memory_bytes=4 * GIB),
        vm={"db": VM(memory_bytes=8 * GIB)},
        event=(CompactEvent(at_ns=2 * HOUR),),
    )
    with pytest.raises(BadInput) as caught:
        check_scenario(scenario)
    assert [str(problem) for problem in caught.value.problems] == [
        "vm.db.memory: 8GiB is more than the host has, 4GiB (host.memory)",
        "event[0].at: 2h is not before the end of the run, 1h (run.until)",
    ]
    check_scenario(attrs.evolve(scenario, host=Host(memory_bytes=16 * GIB), run=Run(until_ns=3 * HOUR)))


def test_plain_data_is_read_and_checked_as_a_file_is(tmp_path: Path) -> None:
    data: dict[str, Any] = {"host": {"memory": "4GiB"}, "vm": {"a": {"memory": "1GiB", "count": 2}}}
    scenario = checked(data, name="day", folder=tmp_path)
    assert (scenario.name, scenario.folder, list(scenario.vm)) == ("day", tmp_path, ["a-0", "a-1"])
    with pytest.raises(BadInput) as caught:
        checked({**data, "event": [{"at": "2h", "do": "compact"}], "x": 1}, name="day", folder=tmp_path)
    assert [str(problem) for problem in caught.value.problems] == [
        "event[0].at: 2h is not before the end of the run, 1h (run.until)",
        'unknown key "x"; known: "run", "host", "vm", "event", "actor", "measure", "sweep"',
    ]


def test_a_script_may_boot_all_the_vms_there_are(tmp_path: Path) -> None:
    (tmp_path / "life.py").touch()
    text = '[run]\nscript = "life.py:life"\n[host]\nmemory = "4GiB"\n'
    assert load_scenario(write(tmp_path, text)).vm == {}
    assert problems_of(tmp_path, '[host]\nmemory = "4GiB"\n') == [
        'day.toml: no VM; a scenario needs one, e.g. [vm.db] and memory = "8GiB"'
    ]


@given(event=made.events())
def test_an_event_says_its_verb_wherever_it_is_written(event: Event) -> None:
    plain = strict.unstructure(event)
    assert plain["do"] == event.do
    assert strict.structure(Event, plain) == event
    assert strict.structure(type(event), plain) == event


def test_events_that_name_several_vms_become_one_for_each() -> None:
    vms = {"a": VM(memory_bytes=GIB, count=2), "b": VM(memory_bytes=GIB)}
    events = (CompactEvent(at_ns=0), CompactEvent(at_ns=0, vm="*"), FaultEvent(at_ns=1, fault="bit"))
    scenario = resolved(Scenario(host=Host(memory_bytes=8 * GIB), vm=vms, event=events))
    assert [getattr(event, "vm", None) for event in scenario.event] == ["", "a-0", "a-1", "b", ""]
    assert resolved(scenario) == scenario


@pytest.mark.parametrize(
    ("machine_type", "memory", "low"),
    [
        ("pc-1.4", 3 * GIB, 3 * GIB),
        ("pc-1.4", 8 * GIB, 7 * GIB // 2),  # 0xe0000000 (QEMU, pc_init1)
        ("pc", 8 * GIB, 3 * GIB),  # 0xc0000000 beyond 0xe0000000
        ("q35", 8 * GIB, 2 * GIB),  # 0x80000000 beyond 0xb0000000
        ("q35", 2 * GIB, 2 * GIB),
    ],
)
def test_memory_below_the_gap_is_qemus(machine_type: Any, memory: int, low: int) -> None:
    vm = VM(memory_bytes=memory, machine_type=machine_type)
    assert vm.low_bytes == low
    assert vm.segment_bytes == (memory - low or memory)
    if memory > low:
        assert attrs.evolve(vm, io_gap="reclaim").segment_bytes == memory - (256 << 20)


@pytest.mark.parametrize(
    ("memory", "kernelcore", "movable"),
    [(64, None, 56), (4, None, 3), (1, None, 1), (64, 64, 64), (64, 4, 60)],
)
def test_what_segments_can_lie_in_is_above_kernelcore(memory: int, kernelcore: int | None, movable: int) -> None:
    size = None if kernelcore is None else kernelcore * GIB
    assert Host(memory_bytes=memory * GIB, kernelcore_bytes=size).movable_bytes == movable * GIB


# --- round trips ---


@given(scenario=made.scenarios())
def test_what_is_written_out_reads_back_the_same(scenario: Scenario) -> None:
    plain = strict.unstructure(scenario)
    assert strict.structure(Scenario, plain) == attrs.evolve(scenario, name="")
    assert strict.structure(Scenario, tomllib.loads(made.toml(plain))) == attrs.evolve(scenario, name="")


@given(scenario=made.scenarios(), data=st.data())
def test_a_scenario_with_one_value_spoilt_is_refused_in_single_lines(scenario: Scenario, data: st.DataObject) -> None:
    plain = strict.unstructure(scenario)
    path, _ = data.draw(st.sampled_from(list(strict.leaves(plain))))
    spoilt = replaced(plain, path, data.draw(st.sampled_from([None, {}, "\n", -1, 2.5, [None]])))
    found = strict.mistakes(Scenario, spoilt)
    assert not isinstance(found, list) or not [mistake for mistake in found if "\n" in mistake.message]


def test_a_policy_keeps_the_arguments_of_its_code() -> None:
    policy = BalloonPolicy(policy="keep.py:KeepFree", parameters={"share": 0.2})
    assert strict.unstructure(policy)["share"] == 0.2
    assert strict.structure(BalloonPolicy, strict.unstructure(policy)) == policy
