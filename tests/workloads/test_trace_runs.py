"""Folding, our own file, reuse: what must hold of any sequence of accesses."""

from __future__ import annotations

import tracemalloc
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim.errors import BadInput
from vmmsim.translation.chunk import FETCH, WRITE, again_of, gvpn_of, pack
from vmmsim.workloads import lackey
from vmmsim.workloads.compact import fold, folded, rechunk
from vmmsim.workloads.counts import Tally
from vmmsim.workloads.inspect import inspect
from vmmsim.workloads.parquet import ParquetTrace
from vmmsim.workloads.reuse import ReuseMeter
from vmmsim.workloads.save import convert
from vmmsim.workloads.trace import open_trace

Access = tuple[str, int, int]
"""Operation of lackey, address, size."""

accesses = st.lists(
    st.tuples(
        st.sampled_from("ILSM"),
        st.integers(1, 3).flatmap(lambda page: st.sampled_from([page << 12, (page << 12) + 64, (page << 12) + 4092])),
        st.sampled_from([1, 4, 8]),
    ),
    min_size=1,
    max_size=60,
)


def text_of(sequence: list[Access]) -> bytes:
    lines = (f"I  {a:08x},{s}\n" if op == "I" else f" {op} {a:08x},{s}\n" for op, a, s in sequence)
    return "".join(lines).encode()


def lines_of(sequence: list[Access], fetch: bool) -> list[tuple[int, bool]]:
    """Return line and is-write of each translation of one sort, in the obvious way."""
    found = []
    for op, address, size in sequence:
        if (op == "I") == fetch:
            found.append((address >> 6, op in "SM"))
            if address >> 12 != (address + size - 1) >> 12:
                found.append((((address >> 12) + 1) << 6, op in "SM"))
    return found


def runs_of(lines: list[tuple[int, bool]]) -> list[tuple[int, bool, int]]:
    """Return the runs of one sort in the obvious way: line, is-write, accesses."""
    runs: list[tuple[int, bool, int]] = []
    for line, write in lines:
        if runs and runs[-1][0] == line and (runs[-1][1] or not write):
            runs[-1] = (line, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((line, write, 1))
    return runs


def unpacked(chunk: np.ndarray, fetch: bool) -> list[tuple[int, bool, int]]:
    part = chunk[(chunk & FETCH != 0) == fetch]
    lines = part >> 12
    return [(int(a), bool(w), int(n) + 1) for a, w, n in zip(lines, part & WRITE, again_of(part), strict=True)]


@given(accesses, st.integers(1, 200))
@settings(deadline=None, max_examples=150)
def test_runs_expand_to_the_lines_of_the_program_wherever_the_blocks_end(sequence, step):
    text = text_of(sequence)
    pieces = [text[i : i + step] for i in range(0, len(text), step)]
    blocks = lackey.parse(pieces, file="t")
    from vmmsim.workloads.trace import runs_of as runs_of_blocks

    tally = Tally()
    chunk = np.concatenate(list(runs_of_blocks(blocks, "all", tally)))
    for fetch in (False, True):
        assert unpacked(chunk, fetch) == runs_of(lines_of(sequence, fetch))
    counts = tally.counts()
    assert counts.fetches == sum(op == "I" for op, _, _ in sequence)
    assert counts.modifies == sum(op == "M" for op, _, _ in sequence)
    assert counts.translations == len(lines_of(sequence, False)) + len(lines_of(sequence, True))
    assert counts.data_pages == len({line >> 6 for line, _ in lines_of(sequence, False)})


@given(accesses)
@settings(deadline=None, max_examples=60)
def test_our_own_file_gives_back_the_same_runs_and_counts(tmp_path_factory, sequence):
    directory = tmp_path_factory.mktemp("own")
    (directory / "t").write_bytes(text_of(sequence))
    source = open_trace(directory / "t")
    counts = convert(source, directory / "o")
    own = open_trace(directory / "o")
    assert own.format == "vmmsim"
    assert own.counts() == counts == source.counts()
    for kinds in ("all", "data", "instructions"):
        if kinds == "all" or (counts.fetches if kinds == "instructions" else counts.accesses > counts.fetches):
            expected = np.concatenate(list(source.chunks(kinds)))
            assert np.array_equal(np.concatenate(list(own.chunks(kinds, size=7))), expected)


@given(accesses)
@settings(deadline=None, max_examples=60)
def test_matching_lines_gives_what_arrays_give(sequence):
    text = text_of(sequence)
    starts, ends = lackey._line_bounds(text)
    quick = lackey._parse_arrays(text, starts, ends)
    assert quick is not None
    for one, other in zip(quick, lackey._parse_matching(text, starts, "t"), strict=True):
        assert np.array_equal(one, other)


def test_a_run_longer_than_its_field_goes_on_in_the_next():
    runs = fold(pack(np.full(2050, 5), 0))
    assert again_of(runs).tolist() == [1023, 1023, 1]
    assert np.array_equal(fold(runs), runs)


def test_a_write_after_reads_starts_a_run_and_a_read_after_a_write_does_not():
    runs = fold(pack([5, 5, 5, 5, 5], [0, 0, 1, 0, 1]))
    assert runs.tolist() == [*pack(5, 0, again=1), *pack(5, 1, again=2)]


def test_fetches_do_not_end_a_run_of_data_which_stands_where_it_began():
    stream = np.concatenate([pack(5), pack(9, is_fetch=1), pack(5), pack(10, is_fetch=1), pack(5)])
    assert np.concatenate(list(folded([stream[:2], stream[2:]]))).tolist() == [
        *pack(5, again=2),
        *pack(9, is_fetch=1),
        *pack(10, is_fetch=1),
    ]


def test_rechunk_keeps_elements_and_makes_equal_pieces():
    pieces = list(rechunk([np.arange(5), np.arange(5, 6), np.arange(6, 20)], 4))
    assert [piece.size for piece in pieces] == [4, 4, 4, 4, 4]
    assert np.concatenate(pieces).tolist() == list(range(20))


@given(st.lists(st.lists(st.integers(0, 40), max_size=80), min_size=1, max_size=4))
@settings(deadline=None, max_examples=100)
def test_reuse_is_what_an_lru_tlb_of_each_size_misses(batches):
    pages = [page for batch in batches for page in batch]
    meter = ReuseMeter()
    for batch in batches:
        meter.add(pack(np.array(batch, dtype=np.int64)) if batch else np.empty(0, np.int64))
        meter._measure()
    reuse = meter.reuse()
    assert reuse.first_touches == len(set(pages))
    for size, misses in reuse.misses.items():
        tlb: OrderedDict[int, None] = OrderedDict()
        expected = 0
        for page in pages:
            if page in tlb:
                tlb.move_to_end(page)
                continue
            expected += 1
            tlb[page] = None
            if len(tlb) > size:
                tlb.popitem(last=False)
        assert misses == expected, size


def own_trace(directory: Path, runs: int = 3000) -> Path:
    rng = np.random.default_rng(7)
    (directory / "t").write_bytes(b"".join(b" L %x,4\n" % a for a in (rng.integers(1, 1 << 20, runs) << 6)))
    convert(open_trace(directory / "t"), directory / "own.parquet")
    return directory / "own.parquet"


def test_our_own_file_cut_short_anywhere_is_refused(tmp_path):
    path = own_trace(tmp_path)
    whole = path.read_bytes()
    for end in (4, 7, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(BadInput, match=rf"own.parquet: byte {end} \(the end\): the trace is cut short or corrupt"):
            open_trace(path)


def test_our_own_file_with_a_flipped_byte_is_refused_with_the_row_group(tmp_path):
    path = own_trace(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 3] ^= 0x40
    path.write_bytes(whole)
    with pytest.raises(BadInput, match=r"own.parquet: row group 0, byte \d+: the trace is cut short or corrupt"):
        list(open_trace(path).chunks("all"))


def test_inspection_finds_runs_that_are_not_those_described(tmp_path, monkeypatch):
    trace = open_trace(own_trace(tmp_path))
    assert inspect(trace).counts == trace.counts()
    monkeypatch.setattr(trace, "sha256", "0" * 64)
    with pytest.raises(BadInput, match="its description says 000000000000"):
        inspect(trace)


def test_a_parquet_file_of_others_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "p")
    with pytest.raises(BadInput, match="is a Parquet file but no trace of vmmsim"):
        open_trace(tmp_path / "p")


def test_kernel_addresses_lie_higher_up_in_five_levels(tmp_path):
    (tmp_path / "t").write_bytes(b" L ffff800000001000,4\n L 1000,4\n")
    convert(open_trace(tmp_path / "t"), tmp_path / "o")
    for levels in (4, 5):
        own = open_trace(tmp_path / "o", levels=levels)
        expected = open_trace(tmp_path / "t", levels=levels)
        assert np.array_equal(next(own.chunks()), next(expected.chunks()))
        assert own.counts() == expected.counts()


def test_data_alone_can_be_converted_from_our_own_file(tmp_path):
    (tmp_path / "t").write_bytes(b"I  1ffe,4\n L 2ffe,4\n S 5000,4\nI  2002,4\n")
    convert(open_trace(tmp_path / "t"), tmp_path / "all")
    convert(open_trace(tmp_path / "all"), tmp_path / "data", kinds="data")
    counts = open_trace(tmp_path / "data").counts()
    assert (counts.fetches, counts.fetch_crossings, counts.data_crossings) == (0, 0, 1)
    assert counts == convert(open_trace(tmp_path / "t"), tmp_path / "again", kinds="data")


def test_inspection_of_a_trace_by_hand(tmp_path):
    (tmp_path / "t").write_bytes(b"I  1000,4\n L 5000,8\n S 6000,8\n L 5008,8\nI  1004,4\n")
    found = inspect(open_trace(tmp_path / "t"))
    assert found.counts.pages == 3
    assert found.counts.footprint_bytes == 3 * 4096
    assert (found.counts.lowest, found.counts.highest) == (0x1000, 0x603F)
    assert found.reuse["data"].accesses == 3
    assert found.reuse["data"].first_touches == 2
    assert found.reuse["data"].misses == {4: 2}


def test_memory_stays_bounded_over_a_long_trace(tmp_path):
    path = tmp_path / "t"
    block = b"".join(b" L %08x,8\nI  %08x,4\n" % (0x1000 + 64 * i, 0x400000 + 4 * i) for i in range(20000))
    with path.open("wb") as file:
        for _ in range(50):  # 30 MB of text, two million accesses
            file.write(block)
    trace = open_trace(path)
    list(zip(trace.chunks("all", size=1 << 14), range(1), strict=False))
    tracemalloc.start()
    try:
        total = sum(chunk.size for chunk in trace.chunks("all", size=1 << 14))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 1_000_000
    assert peak < 48 << 20


def test_pages_of_a_chunk_are_page_numbers(tmp_path):
    trace = ParquetTrace(own_trace(tmp_path))
    assert all((gvpn_of(chunk) < 1 << 14).all() for chunk in trace.chunks(size=100))
