"""The benchmark measures equal work, on streams and layouts that are what it says they are. Nothing is timed here."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from vmmsim.config import MODES
from vmmsim.machine_file import load_machine
from vmmsim.studies.bench import Kernels, NotTheSame, Rate, assert_same_work, geometric_mean, smallest
from vmmsim.studies.bench_layout import ESCAPES, laid_out, primary_region
from vmmsim.studies.bench_streams import FOOTPRINT_PAGES, Stream, stream_of, streams
from vmmsim.studies.c_program import CProgram, find_compiler, find_source, header
from vmmsim.translation.chunk import WRITE, gvpn_of, pack
from vmmsim.translation.state import CORE

MACHINES = ("sandy-bridge-2012", "skylake", "zen-4", "sapphire-rapids")


def a_stream(accesses: int = 3000) -> Stream:
    """Return reads and writes over 2000 pages, some far away, often enough near each other to hit both TLB levels."""
    random = np.random.default_rng(3)
    pages = np.concatenate([np.arange(1 << 20, (1 << 20) + 1990), np.arange(1 << 30, (1 << 30) + 10)])
    near = np.minimum(random.geometric(0.02, accesses), pages.size) - 1
    chosen = np.where(random.random(accesses) < 0.5, near, random.integers(0, pages.size, accesses))
    return stream_of("test", [pack(pages[chosen], random.random(accesses) < 0.3, line=chosen % 64)], accesses)


@pytest.fixture(scope="module")
def c_program() -> CProgram:
    source, compiler = find_source(), find_compiler()
    if source is None or compiler is None:
        pytest.skip("no C compiler")
    return CProgram(source, compiler)


@pytest.mark.parametrize("hierarchy", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_c_program_does_what_the_kernels_do(c_program: CProgram, machine: str, mode: str, hierarchy: bool) -> None:
    stream = a_stream()
    engine = laid_out(load_machine(machine), MODES[mode], stream.pages, hierarchy=hierarchy)
    assert_same_work(engine, [Kernels(), c_program], stream)


def test_a_difference_is_noticed(c_program: CProgram) -> None:
    class Forgetful(Kernels):
        def translate(self, record, cells, pool, chunk):  # type: ignore[no-untyped-def]
            done = super().translate(record, cells, pool, chunk)
            cells[cells.argmax()] -= 1
            return done

    stream = a_stream()
    engine = laid_out(load_machine("skylake"), MODES["base"], stream.pages, hierarchy=False)
    with pytest.raises(NotTheSame, match="structures differ"):
        assert_same_work(engine, [c_program, Forgetful()], stream)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_laid_out_is_true(mode: str) -> None:
    stream = a_stream(500)
    engine = laid_out(load_machine("sandy-bridge-2012"), MODES[mode], stream.pages, hierarchy=False)
    assert engine.run(stream.chunk).done == stream.chunk.size
    engine.check()
    counts = engine.counters()
    if MODES[mode].guest == "segment":
        assert 0 < counts["escapes"] < 500
        assert counts["checks_failed"] > counts["escapes"], "the far pages lie outside"


def test_the_primary_region_is_where_most_pages_are() -> None:
    assert primary_region(np.array([5, 1 << 20, (1 << 20) + 9, 1 << 40])) == (1 << 20, (1 << 20) + 10)


def test_streams_cover_what_they_say() -> None:
    uniform, zipf, sequential = streams(np.random.default_rng(1), 1 << 14)
    for stream in (uniform, zipf, sequential):
        assert np.isin(gvpn_of(stream.chunk), stream.pages).all()
        assert stream.pages.size == FOOTPRINT_PAGES
        assert 0.2 < (stream.chunk & WRITE).mean() < 0.3
    assert np.unique(gvpn_of(uniform.chunk)).size > 0.98 * uniform.chunk.size
    _, often = np.unique(gvpn_of(zipf.chunk), return_counts=True)
    # Of a bounded Zipf of exponent 1 over n pages, the first takes 1 / H(n): here a 14th.
    assert often.max() / zipf.chunk.size == pytest.approx(1 / (np.log(FOOTPRINT_PAGES) + 0.5772), rel=0.2)


def test_a_sequential_stream_goes_round_the_footprint() -> None:
    sequential = streams(np.random.default_rng(1), 1 << 14)[2]
    turns = FOOTPRINT_PAGES // sequential.advance_pages
    starts = [int(gvpn_of(chunk)[0]) for _, chunk in zip(range(turns + 1), sequential.turns(), strict=False)]
    assert starts[0] == starts[turns] == sequential.pages[0]
    assert starts[1] == gvpn_of(sequential.chunk)[-1] + 1
    assert len(set(starts)) == turns


def test_a_trace_gives_its_first_runs() -> None:
    chunks = [pack(np.arange(10)), pack(np.arange(10, 20))]
    assert gvpn_of(stream_of("trace", chunks, 15).chunk).tolist() == list(range(15))


def test_the_header_has_the_whole_record() -> None:
    text = header()
    assert text.count("int64_t ") == len(CORE.names or ())
    assert "int64_t filter_hash[2][6][256];" in text


def test_means_are_of_ratios() -> None:
    rate = Rate(
        mode="base",
        stream="zipf",
        hierarchy=False,
        accesses_per_second=8.0,
        c_accesses_per_second=16.0,
        l1_misses=0.5,
        l2_misses=0.5,
    )
    twice = attrs.evolve(rate, accesses_per_second=32.0)
    assert geometric_mean([rate, twice]) == pytest.approx(1.0)
    assert smallest([rate, twice]) == 0.5
    assert geometric_mean([attrs.evolve(rate, c_accesses_per_second=None)]) is None
    assert ESCAPES == 16
