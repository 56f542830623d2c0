"""Machine files: what is shipped, what is refused, and where each number comes from."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from vmmsim import strict
from vmmsim.config import Cycles, Machine, Source, TableCache, TlbPart
from vmmsim.errors import BadInput
from vmmsim.machine_file import load_machine, machine_names, machine_path, source_of, values

HERE = Path(__file__).parent / "machines"

GOOD = """
frequency = "1GHz"
l1_data_tlb = [{ entries = 64, ways = 4 }]
l1_instruction_tlb = [{ entries = 64, ways = 4 }]
l2_tlb = [{ entries = 512, ways = 4 }]
[walk_cache]
l2 = { entries = 32, ways = 4 }
[caches]
l1_data = { size = "32KiB", ways = 8, cycles = 4 }
l1_instruction = { size = "32KiB", ways = 8, cycles = 4 }
l2 = { size = "256KiB", ways = 8, cycles = 12 }
memory_cycles = 200
[cycles]
check = 1
[switches]
ntlb_data = false
[sources]
l2_tlb = { source = "a manual", sure = "read" }
"""


def write(folder: Path, text: str) -> str:
    file = folder / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


# --- what is shipped ---


def test_four_machines_are_shipped() -> None:
    assert machine_names() == ["sandy-bridge-2012", "sapphire-rapids", "skylake", "zen-4"]


@pytest.mark.parametrize("name", machine_names())
def test_a_shipped_machine_loads_under_its_own_name(name: str) -> None:
    machine = load_machine(name)
    assert machine.name == name
    assert machine.title


@pytest.mark.parametrize("name", machine_names())
def test_every_value_of_a_shipped_machine_has_a_source(name: str) -> None:
    machine = load_machine(name)
    paths = [path for path, _ in values(machine)]
    assert len(paths) > 50
    assert [path for path in paths if source_of(machine, path) is None] == []


@pytest.mark.parametrize("name", machine_names())
def test_a_shipped_machine_leaves_nothing_to_defaults(name: str) -> None:
    written = tomllib.loads(machine_path(name).read_text(encoding="utf-8"))
    in_the_file = {path for path, _ in strict.leaves(written) if not path.startswith(("title", "sources"))}
    assert in_the_file == {path for path, _ in values(load_machine(name))}


@pytest.mark.parametrize("name", machine_names())
def test_no_source_of_a_shipped_machine_is_without_words(name: str) -> None:
    assert all(len(source.source) > 10 for source in load_machine(name).sources.values())


def test_the_papers_platform_has_the_papers_tlbs() -> None:
    machine = load_machine("sandy-bridge-2012")
    assert machine.frequency_hz == 2_200_000_000
    assert machine.l1_data_tlb == (
        TlbPart(entries=64, ways=4, pages=("4K",)),
        TlbPart(entries=32, ways=4, pages=("2M",)),
        TlbPart(entries=4, ways=4, pages=("1G",)),
    )
    assert machine.l2_tlb == (TlbPart(entries=512, ways=4, pages=("4K",)),)
    assert machine.nested_tlb == ()
    assert machine.switches.ntlb_in_l2
    assert not machine.switches.ept_accessed_dirty
    assert machine.cycles == Cycles(l2_tlb_hit=7, check=1)


def test_nothing_recalled_passes_for_read() -> None:
    machine = load_machine("sandy-bridge-2012")
    read = [path for path, _ in values(machine) if (of := source_of(machine, path)) and of.sure == "read"]
    assert read == ["cycles.l2_tlb_hit"]


def test_the_tests_own_machines_load() -> None:
    cachegrind = load_machine(str(HERE / "cachegrind.toml"))
    assert cachegrind.l1_data_tlb == cachegrind.l1_instruction_tlb == (TlbPart(entries=64, ways=4),)
    assert cachegrind.l2_tlb == (TlbPart(entries=512, ways=4),)
    toy = load_machine(str(HERE / "toy.toml"))
    assert [(part.entries, part.ways) for part in (*toy.l1_data_tlb, *toy.l2_tlb)] == [(2, 2), (4, 2)]


# --- a file of one's own ---


def test_a_file_names_its_machine_or_lends_it_its_own_name(tmp_path: Path) -> None:
    assert load_machine(write(tmp_path, GOOD)).name == "mine"
    assert load_machine(write(tmp_path, 'name = "other"\n' + GOOD)).name == "other"


def test_the_longest_source_key_above_a_value_applies(tmp_path: Path) -> None:
    more = '"l2_tlb[0].ways" = { source = "measured", sure = "derived" }\n'
    machine = load_machine(write(tmp_path, GOOD + more))
    assert source_of(machine, "l2_tlb[0].entries") == Source(source="a manual", sure="read")
    assert source_of(machine, "l2_tlb[0].ways") == Source(source="measured", sure="derived")
    assert source_of(machine, "l2_tlb_x") is None
    assert source_of(machine, "frequency") is None


def test_a_file_may_change_a_shipped_machine(tmp_path: Path) -> None:
    text = 'base = "skylake"\nl2_tlb = [{ entries = 8, ways = 2 }]\ncaches.l3 = { cycles = 44 }\n'
    machine, base = load_machine(write(tmp_path, text)), load_machine("skylake")
    assert (machine.name, machine.title) == ("mine", "skylake, changed")
    assert machine.l2_tlb == (TlbPart(entries=8, ways=2),)
    assert machine.caches.l3 is not None
    assert base.caches.l3 is not None
    assert (machine.caches.l3.cycles, machine.caches.l3.ways) == (44, base.caches.l3.ways)
    assert machine.l1_data_tlb == base.l1_data_tlb


def test_what_a_file_changes_loses_the_source_of_the_base(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        'base = "zen-4"\nl2_tlb = [{ entries = 8, ways = 2 }]\ncaches.l3.cycles = 44\n'
        '[sources]\n"caches" = { source = "measured here", sure = "derived" }\n',
    )
    machine, base = load_machine(file), load_machine("zen-4")
    unsaid = Source(source=f"{file}, which does not say where it comes from", sure="assumed")
    assert source_of(machine, "l2_tlb[0].ways") == unsaid
    assert source_of(machine, "caches.l3.cycles") == Source(source="measured here", sure="derived")
    assert source_of(machine, "caches.l3.size") == source_of(base, "caches.l3.size")
    assert [path for path, _ in values(machine) if source_of(machine, path) is None] == []


def test_a_base_gives_a_walk_cache_level_that_it_does_not_have(tmp_path: Path) -> None:
    machine = load_machine(write(tmp_path, 'base = "zen-4"\nlevels = 5\nwalk_cache.l5 = { entries = 2, ways = 2 }\n'))
    assert machine.walk_cache.l5 == TableCache(entries=2, ways=2)


# --- what is refused ---

BAD: list[tuple[str, str, str]] = [
    # what of GOOD is replaced, by what, and what is said
    ('frequency = "1GHz"', "", '"frequency" is missing'),
    ('frequency = "1GHz"', "frequency = 1000", 'frequency: 1000 is not a frequency; write e.g. "2.2GHz"'),
    ('frequency = "1GHz"', 'frequency = "1GB"', 'frequency: "1GB" is not a frequency; write e.g. "2.2GHz"'),
    ('frequency = "1GHz"', 'frequency = "0Hz"', "frequency: must be at least 1 Hz"),
    ('frequency = "1GHz"', 'frequency_hz = "1GHz"', '"frequency" is missing\n'
     'unknown key "frequency_hz"; did you mean "frequency"?'),
    ('frequency = "1GHz"', 'frequency = "1GHz"\nlevels = 3', "levels: must be 4 or 5, not 3"),
    ('frequency = "1GHz"', 'frequency = "1GHz"\nlevels = "4"', 'levels: "4" is not a whole number'),
    ('frequency = "1GHz"', 'frequency = "1GHz"\ntitel = "x"', 'unknown key "titel"; did you mean "title"?'),
    ("l2_tlb = [{ entries = 512, ways = 4 }]", "l2_tlb = { entries = 512, ways = 4 }",
     "l2_tlb: a table is not a list; write it in [brackets]"),
    ("l2_tlb = [{ entries = 512, ways = 4 }]", "l2_tlb = [{ entries = 512, ways = 4.0 }]",
     "l2_tlb[0].ways: 4.0 is not a whole number"),
    ("l2_tlb = [{ entries = 512, ways = 4 }]", "l2_tlb = [{ entries = 512, way = 4 }]",
     'l2_tlb[0]: "ways" is missing\nl2_tlb[0]: unknown key "way"; did you mean "ways"?'),
    ("l2_tlb = [{ entries = 512, ways = 4 }]", "l2_tlb = [{ entries = 500, ways = 4 }]",
     "l2_tlb[0]: 500 entries in 4 ways do not make a power of two of sets"),
    ("l2_tlb = [{ entries = 512, ways = 4 }]", "l2_tlb = [{ entries = 0, ways = 4 }]",
     "l2_tlb[0]: entries and ways must be at least 1"),
    ("l2_tlb = [{ entries = 512, ways = 4 }]", "l2_tlb = [{ entries = 2097152, ways = 4 }]",
     "l2_tlb[0]: 2097152 entries are more than one array may have, 1048576"),
    ("l2_tlb = [{ entries = 512, ways = 4 }]", 'l2_tlb = [{ entries = 512, ways = 4, pages = ["4k"] }]',
     'l2_tlb[0]: pages must name each page size at most once, of "4K", "2M", "1G"'),
    ("l2_tlb = [{ entries = 512, ways = 4 }]", 'l2_tlb = [{ entries = 512, ways = 4, pages = "4K" }]',
     'l2_tlb[0].pages: "4K" is not a list; write it in [brackets]'),
    ("l2_tlb = [{ entries = 512, ways = 4 }]",
     "l2_tlb = [{ entries = 8, ways = 4 }, { entries = 8, ways = 4 }]",
     "l2_tlb: a page size lies in two parts"),
    ("l1_data_tlb = [{ entries = 64, ways = 4 }]",
     'l1_data_tlb = [{ entries = 64, ways = 4, pages = ["2M"] }]',
     "l1_data_tlb: some part must hold 4K pages"),
    ("l1_data_tlb = [{ entries = 64, ways = 4 }]", "l1_data_tlb = []",
     "l1_data_tlb: some part must hold 4K pages"),
    ("l2 = { entries = 32, ways = 4 }", "l2 = 32", "walk_cache.l2: 32 is not a table"),
    ("l2 = { entries = 32, ways = 4 }", "l1 = { entries = 32, ways = 4 }",
     'walk_cache: unknown key "l1"; known: "l2", "l3", "l4", "l5"'),
    ('"256KiB", ways = 8', '"256KB", ways = 8', 'caches.l2.size: "256KB" is not a size; write e.g. "64GiB"'),
    ('"256KiB", ways = 8', "262144, ways = 8", 'caches.l2.size: 262144 is not a size; write e.g. "64GiB"'),
    ('"256KiB", ways = 8', '"256KiB", ways = 7',
     "caches.l2: 256 KiB in 7 ways do not make a power of two of sets of 64-byte lines"),
    ('"256KiB", ways = 8', '"32B", ways = 1',
     "caches.l2: size must be at least one line of 64 bytes, and ways at least 1"),
    ('"256KiB", ways = 8', '"8GiB", ways = 8', "caches.l2: size must be at most 4 GiB"),
    ("ways = 8, cycles = 12", "ways = 8, cycles = -12", "caches.l2: cycles must not be negative"),
    ("memory_cycles = 200", 'memory_cycles = "200"', 'caches.memory_cycles: "200" is not a whole number'),
    ("memory_cycles = 200", "memory_cycles = -1", "caches: memory_cycles must not be negative"),
    ("memory_cycles = 200", 'memory_cycles = 200\nwalker_enters = "L1"',
     'caches.walker_enters: "L1" is unknown; known: "l1", "l2"'),
    ("check = 1", "check = true", "cycles.check: true is not a whole number"),
    ("check = 1", "l2_tlb_hits = 7", 'cycles: unknown key "l2_tlb_hits"; did you mean "l2_tlb_hit"?'),
    ("ntlb_data = false", "ntlb_data = 0", "switches.ntlb_data: 0 is not true or false"),
    ("ntlb_data = false", 'segment_at = "l1-miss"',
     'switches.segment_at: "l1-miss" is unknown; did you mean "l1_miss"?'),
    ("ntlb_data = false", "ntlb_in_l2 = true\n[[nested_tlb]]\nentries = 4\nways = 4",
     "nested_tlb: switches.ntlb_in_l2 puts nested entries into the L2 TLB instead; use one of them"),
    ("l2_tlb = { source", "l2_tbl = { source",
     'sources: "l2_tbl" is no key of this machine; did you mean "l2_tlb"?'),
    ("l2_tlb = { source", '"l2_tlb[1]" = { source',
     'sources: "l2_tlb[1]" is no key of this machine; did you mean "l2_tlb[0]"?'),
    ('sure = "read"', 'sure = "certain"',
     'sources.l2_tlb.sure: "certain" is unknown; known: "read", "derived", "recalled", "assumed"'),
    (', sure = "read"', "", 'sources.l2_tlb: "sure" is missing'),
    ('frequency = "1GHz"', 'base = "skylak"', 'base: "skylak" is unknown; did you mean "skylake"?'),
    ('frequency = "1GHz"', "base = 3", 'base: 3 is unknown; known: "sandy-bridge-2012", "sapphire-rapids", '
     '"skylake", "zen-4"'),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), BAD)
def test_a_bad_machine_file_is_refused_with_what_would_be_right(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert GOOD.count(old) == 1
    file = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(BadInput) as caught:
        load_machine(file)
    assert [str(problem).removeprefix(f"{file}: ") for problem in caught.value.problems] == said.split("\n")


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    bad = GOOD.replace('"1GHz"', '"1"').replace("entries = 512", "entries = 2.7").replace("check = 1", "chek = 1")
    with pytest.raises(BadInput) as caught:
        load_machine(write(tmp_path, bad))
    assert [problem.path for problem in caught.value.problems] == ["frequency", "l2_tlb[0].entries", "cycles"]


def test_a_changed_machine_is_refused_in_its_own_files_name(tmp_path: Path) -> None:
    file = write(tmp_path, 'base = "skylake"\ncaches.l2.size = 3\nsources = 4\n')
    with pytest.raises(BadInput) as caught:
        load_machine(file)
    assert [str(problem) for problem in caught.value.problems] == [
        f'{file}: caches.l2.size: 3 is not a size; write e.g. "64GiB"',
        f"{file}: sources: 4 is not a table",
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("skylak", '; did you mean "skylake"?'), ("zen4", '; did you mean "zen-4"?'), ("vax", "")],
)
def test_an_unknown_name_is_refused_with_the_names_that_there_are(name: str, hint: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_machine(name)
    names = "sandy-bridge-2012, sapphire-rapids, skylake, zen-4"
    assert str(caught.value) == f'machine "{name}" is neither a file nor one of {names}{hint}'


def test_contradictions_are_found_without_a_file_too() -> None:
    plain: dict[str, Any] = strict.unstructure(load_machine(str(HERE / "toy.toml")))
    with pytest.raises(BadInput, match="levels: must be 4 or 5, not 6") as caught:
        strict.structure(Machine, {**plain, "levels": 6, "l1_data_tlb": []})
    assert len(caught.value.problems) == 2


def test_the_examples_of_the_guide_load(tmp_path: Path) -> None:
    guide = (HERE.parents[1] / "docs" / "machines.md").read_text(encoding="utf-8")
    examples = [block.split("```")[0] for block in guide.split("```toml\n")[1:]]
    whole = [text for text in examples if not text.startswith("[sources]")]
    assert len(whole) == 2
    for text in whole:
        load_machine(write(tmp_path, text))


def test_the_guide_explains_every_key() -> None:
    guide = (HERE.parents[1] / "docs" / "machines.md").read_text(encoding="utf-8")
    keys = {path.split("[")[0].split(".")[-1] for path, _ in values(load_machine(str(HERE / "toy.toml")))}
    assert [key for key in sorted(keys) if f"`{key}`" not in guide and f"{key} =" not in guide] == []
