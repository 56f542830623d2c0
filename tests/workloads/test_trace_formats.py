"""Each format, read as its authors lay it out: vectors by hand, never from our own output."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vmmsim.errors import BadInput
from vmmsim.translation.chunk import pack
from vmmsim.workloads.accesses import FETCH, MODIFY, READ, WRITE
from vmmsim.workloads.trace import Trace, open_trace

CHAMPSIM = bytes.fromhex(
    "0010400000000000 01 01 1a00 1a190000 0000ff7f00000000 0000000000000000"
    "0000010000000000 4000010000000000 0000000000000000 0000000000000000".replace(" ", "")
)
"""ip 0x401000, a store to 0x7fff0000, loads from 0x10000 and 0x10040."""

LACKEY = b"==12== Lackey, an example Valgrind tool\nI  0023C790,2\n S BE80199C,4\n L BE801950,4\n M 0025747C,1\n"

RIGHT = 'right is e.g. " L 1ffeffe7e0,8"'
WIDER = "(bits 63 to 47 must be equal); a trace of a machine with 5 levels needs levels = 5"

DRMEM_READ = bytes.fromhex("00000800efbeadde007f0000".replace(" ", ""))
DRMEM_TIME = bytes.fromhex("1c0002000040838f47402f00")


def record(kind: int, size: int, address: int, wide: bool = True) -> bytes:
    return struct.pack("<HHQ" if wide else "<HHI", kind, size, address)


def drmemtrace(*middle: bytes, file_type: int = 0x240, wide: bool = True) -> bytes:
    first = [record(25, 0, 4, wide), record(28, 12, 4, wide), record(28, 9, file_type, wide)]
    return b"".join([*first, *middle, record(26, 0, 0, wide)])


def recorded(trace: Trace) -> list[tuple[int, int, int]]:
    """Return kind, address and size (0 if not known) of every access."""
    found = []
    for block in trace.blocks():
        sizes = np.zeros(block.address.size, np.int64) if block.size is None else block.size
        found += [(int(k), int(a) % 2**64, int(s)) for k, a, s in zip(block.kind, block.address, sizes, strict=True)]
    return found


def made(directory: Path, name: str, content: bytes) -> Path:
    path = directory / name
    path.write_bytes(content)
    return path


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(BadInput) as caught:
        for _ in open_trace(path, **options).chunks("all"):
            pass
    return str(caught.value).replace(str(path.parent) + "/", "")


def test_lackey_lines_are_fetches_stores_loads_and_modifies(tmp_path):
    trace = open_trace(made(tmp_path, "t", LACKEY))
    assert trace.format == "lackey"
    assert trace.has_instructions
    assert recorded(trace) == [
        (FETCH, 0x23C790, 2),
        (WRITE, 0xBE80199C, 4),
        (READ, 0xBE801950, 4),
        (MODIFY, 0x25747C, 1),
    ]


def test_lackey_addresses_of_any_width_and_sizes_of_more_digits(tmp_path):
    text = b" L 7,1\n L ffffffffff600abc,16\n S 1FFEffe7e0,512\nI  abcdef012,15\n--9-- warning, of valgrind\n L 40,32\n"
    assert recorded(open_trace(made(tmp_path, "t", text), format="lackey")) == [
        (READ, 7, 1),
        (READ, 0xFFFFFFFFFF600ABC, 16),
        (WRITE, 0x1FFEFFE7E0, 512),
        (FETCH, 0xABCDEF012, 15),
        (READ, 0x40, 32),
    ]


def test_a_modify_is_one_write_and_a_page_crossing_is_a_second_access_to_line_0(tmp_path):
    text = b" M 1000,4\n L 2ffe,4\n S 303e,4\n"
    trace = open_trace(made(tmp_path, "t", text))
    (chunk,) = trace.chunks("all")
    assert chunk.tolist() == [
        pack(1, 1)[0],
        pack(2, 0, line=63)[0],
        pack(3, 0)[0],
        pack(3, 1, line=0)[0],  # crosses a line only: its first line, written after it was read
    ]
    counts = trace.counts()
    assert (counts.reads, counts.writes, counts.modifies, counts.page_crossings) == (1, 1, 1, 1)
    assert (counts.accesses, counts.translations, counts.runs) == (3, 4, 4)


def test_champsim_record_is_a_fetch_then_loads_then_stores(tmp_path):
    trace = open_trace(made(tmp_path, "t", CHAMPSIM * 3))
    assert trace.format == "champsim"
    assert recorded(trace) == 3 * [
        (FETCH, 0x401000, 0),
        (READ, 0x10000, 0),
        (READ, 0x10040, 0),
        (WRITE, 0x7FFF0000, 0),
    ]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compression_is_told_from_the_content_not_the_name(tmp_path, compress):
    trace = open_trace(made(tmp_path, "misleading.zip", compress(CHAMPSIM)))
    assert trace.format == "champsim"
    assert trace.counts().accesses == 4


def test_cloudsuite_record_has_96_bytes_and_four_stores(tmp_path):
    one = struct.pack(
        "<QBB4s4s6x4Q4Q2s6x",
        0x401000,
        0,
        0,
        b"\1\2\3\4",
        b"\5\6\7\0",
        0x9000,
        0,
        0,
        0xA000,
        0xB000,
        0,
        0,
        0,
        b"\1\0",
    )
    trace = open_trace(made(tmp_path, "t", one * 2))
    assert trace.format == "champsim-cloudsuite"
    assert recorded(trace)[:4] == [
        (FETCH, 0x401000, 0),
        (READ, 0xB000, 0),
        (WRITE, 0x9000, 0),
        (WRITE, 0xA000, 0),
    ]


def test_champsim_of_a_size_that_is_no_multiple_is_refused_and_the_other_suggested(tmp_path):
    assert refusal(made(tmp_path, "t", CHAMPSIM * 2 + CHAMPSIM[:40])) == (
        "t: byte 128: the last record has 40 of 64 bytes; copy the trace again"
    )
    assert 'or read it as "champsim-cloudsuite"' in refusal(made(tmp_path, "u", bytes(96)), format="champsim")
    assert "byte 64: the last record has 1 of 64" in refusal(made(tmp_path, "v.xz", lzma.compress(CHAMPSIM + b"x")))


def test_drmemtrace_reads_writes_and_fetches_and_skips_the_rest(tmp_path):
    trace = open_trace(
        made(
            tmp_path,
            "t.gz",
            gzip.compress(
                drmemtrace(
                    DRMEM_TIME,
                    record(47, 4, 0x0102),
                    record(10, 4, 0x401000),
                    DRMEM_READ,
                    record(1, 2, 0x5000),
                )
            ),
        )
    )
    assert trace.format == "drmemtrace"
    assert trace.notes == ()
    assert recorded(trace) == [(FETCH, 0x401000, 4), (READ, 0x7F00DEADBEEF, 8), (WRITE, 0x5000, 2)]


def test_drmemtrace_zip_members_are_read_in_order_and_32_bit_records_too(tmp_path):
    whole = drmemtrace(record(0, 1, 0x1000), record(0, 1, 0x2000))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("chunk.0001", whole[48:])
        file.writestr("chunk.0000", whole[:48])
    assert recorded(open_trace(made(tmp_path, "t", archive.getvalue()))) == [
        (READ, 0x1000, 1),
        (READ, 0x2000, 1),
    ]
    narrow = drmemtrace(record(0, 4, 0xBFFF0000, wide=False), wide=False)
    assert recorded(open_trace(made(tmp_path, "n", narrow))) == [(READ, 0xBFFF0000, 4)]


def test_a_zip_file_cut_short_corrupt_or_of_something_else_is_refused(tmp_path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("chunk.0000", drmemtrace(*[DRMEM_READ] * 10))
    whole = bytearray(archive.getvalue())
    assert "the zip file is cut short or corrupt" in refusal(made(tmp_path, "cut", bytes(whole[:-10])))
    whole[140] ^= 1
    assert refusal(made(tmp_path, "bad", bytes(whole))).startswith("bad(chunk.0000): byte 0 after decompression: ")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("letter.txt", "hello")
    assert "is a zip file but no drmemtrace" in refusal(made(tmp_path, "odd", archive.getvalue()))


def test_drmemtrace_that_was_filtered_says_so(tmp_path):
    trace = open_trace(made(tmp_path, "t", drmemtrace(DRMEM_READ, file_type=0x101)))
    assert len(trace.notes) == 2
    assert "filtered" in trace.notes[0]
    assert "TLB results are not those of the program" in trace.notes[0]


def test_drmemtrace_raw_thread_files_are_refused_with_what_to_do(tmp_path):
    raw = struct.pack("<QQ", 6 << 61 | 6, 2 << 61 | 4242)
    assert refusal(made(tmp_path, "t.raw", raw)) == (
        "t.raw: is the raw output of one thread, unsorted and unfinished; run raw2trace on its directory"
    )


def test_drmemtrace_cut_short_or_corrupt_is_refused_with_the_offset(tmp_path):
    whole = drmemtrace(DRMEM_READ)
    assert refusal(made(tmp_path, "t", whole[:-12])) == (
        "t: byte 48: ends without a footer: it is cut short; copy the trace again"
    )
    assert "byte 48: the last record has 5 of 12 bytes" in refusal(made(tmp_path, "u", whole[:-7]))
    assert "byte 36: a record is of type 500" in refusal(made(tmp_path, "v", drmemtrace(record(500, 0, 0))))


@pytest.mark.parametrize("codec", ["snappy", "lz4"])
def test_drmemtrace_under_the_codecs_of_the_extra(tmp_path, codec):
    whole = drmemtrace(DRMEM_READ)
    if codec == "snappy":
        packed = pytest.importorskip("snappy").StreamCompressor().compress(whole)
    else:
        packed = pytest.importorskip("lz4.frame").compress(whole)
    assert recorded(open_trace(made(tmp_path, "t", packed))) == [(READ, 0x7F00DEADBEEF, 8)]


def test_a_missing_codec_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lz4.frame", None)
    assert refusal(made(tmp_path, "t.lz4", b"\x04\x22\x4d\x18" + bytes(20))) == (
        "t.lz4: is compressed with lz4, which needs an extra: pip install 'vmmsim[traces]'"
    )


PERF_MEM = (
    b"# PID, TID, IP, ADDR, LOCAL WEIGHT, DSRC, SYMBOL\n"
    b"4242;4242;0x401000;0x7f1234567890;32;0x68100142;a.out:main\n"
    b"4242;4242;0x401004;0x7f1234567898;7;0x68100144;a.out:odd;name\n"
)


def test_perf_mem_is_a_weighted_sample_and_says_so(tmp_path):
    trace = open_trace(made(tmp_path, "t", PERF_MEM))
    assert trace.format == "perf-mem"
    assert trace.weighted
    assert "sample" in trace.notes[0]
    (block,) = trace.blocks()
    assert block.address.tolist() == [0x7F1234567890, 0x7F1234567898]
    assert block.kind.tolist() == [READ, WRITE]
    assert block.weight is not None
    assert block.weight.tolist() == [32, 7]


def test_perf_mem_without_x_is_refused(tmp_path):
    broken = PERF_MEM.replace(b"0x7f1234567898", b"0x0167f1234567898")
    assert "write it with: perf mem -D -x ';' report" in refusal(made(tmp_path, "t", broken))
    assert refusal(made(tmp_path, "t", broken)).startswith("t: byte 108: ")


def test_perf_script_needs_time_and_addr_and_takes_operation_and_weight(tmp_path):
    text = (
        b"python  4242/4242 [003] 1234.567890:  7 cpu/mem-loads,ldlat=30/P:  7f1234567890  68100142 "
        b"|OP LOAD|LVL L1 hit|SNP None|TLB L1 or L2 hit|LCK No|BLK N/A| 32 401000 main+0x10 (a.out)\n"
        b"py thon 1/2 [000] 1.5: 7 cpu/mem-stores/P: 1000 68100144 |OP STORE|LVL L1 hit|SNP None|LCK No 9\n"
        b"1234.6: 2000\n"
    )
    trace = open_trace(made(tmp_path, "t", text))
    assert trace.format == "perf-script"
    (block,) = trace.blocks()
    assert block.address.tolist() == [0x7F1234567890, 0x1000, 0x2000]
    assert block.kind.tolist() == [READ, WRITE, READ]
    assert block.weight is not None
    assert block.weight.tolist() == [32, 9, 0]


@pytest.mark.parametrize("kind", ["<u8", "<i8", ">u8", "<u4"])
def test_npy_of_addresses(tmp_path, kind):
    file = io.BytesIO()
    np.save(file, np.array([0x1000, 0x1040, 0x2000], dtype=kind))
    trace = open_trace(made(tmp_path, "t", file.getvalue()))
    assert trace.format == "npy"
    assert recorded(trace) == [(READ, 0x1000, 0), (READ, 0x1040, 0), (READ, 0x2000, 0)]


def test_npy_that_is_no_trace_or_cut_short_is_refused(tmp_path):
    file = io.BytesIO()
    np.save(file, np.arange(10.0))
    assert "a trace is a one-dimensional array of integers" in refusal(made(tmp_path, "f", file.getvalue()))
    file = io.BytesIO()
    np.save(file, np.arange(4096, 4196))
    assert refusal(made(tmp_path, "t", file.getvalue()[:-12])) == (
        "t: byte 916: ends after 98 of 100 addresses; save the array again"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t: is empty; a trace holds at least one access"),
        (gzip.compress(b"", mtime=0), "t: is empty once decompressed; a trace holds at least one access"),
        (
            b"==1== Lackey, an example Valgrind tool\n",
            "t: holds no accesses; record a program that makes some",
        ),
        (
            b" L 1000,4\nHello\n",
            't: byte 10: "Hello" is not a line of lackey; right is e.g. " L 1ffeffe7e0,8"',
        ),
        (
            b" L 1000,4\n L 1000,0\n",
            't: byte 10: " L 1000,0" is not a line of lackey; ' + RIGHT,
        ),
        (
            b" L 1000,4\n L 10g0,4\n",
            't: byte 10: " L 10g0,4" is not a line of lackey; ' + RIGHT,
        ),
        (b" L 1000,4\n L 1000", "t: byte 10: the last line is cut short; copy or record the trace again"),
        (
            b" L 1000,4\n L 800000000000,4\n",
            "t: byte 10: 0x800000000000 is not a canonical address of 4-level tables " + WIDER,
        ),
        (
            b" L 7fffffffffff,4\n",
            "t: byte 0: 0x800000000000 is not a canonical address of 4-level tables " + WIDER,
        ),
        (
            b"\x28\xb5\x2f\xfd    ",
            "t: is compressed with zstd, which is not read; decompress it first: zstd -d",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line_with_the_place(tmp_path, content, message):
    assert refusal(made(tmp_path, "t", content)) == message


def test_files_of_no_format_name_the_formats(tmp_path):
    assert refusal(made(tmp_path, "t", b"once upon a time\n")).startswith(
        "t: is of no format known, which are vmmsim, npy, drmemtrace, lackey, "
    )


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_cut_short_or_corrupt_are_refused_with_the_offset(tmp_path, compress):
    noise = np.random.default_rng(1).integers(0, 1 << 40, 70000)  # more than a block of bzip2 holds
    whole = compress(b"".join(b" L %x,4\n" % (a + 4096) for a in noise))
    cut = refusal(made(tmp_path, "cut", whole[: len(whole) // 2]))
    assert "after decompression: the" in cut
    assert "data is cut short here" in cut
    damaged = bytearray(whole)
    damaged[-5000:-4992] = b"\xff" * 8
    assert refusal(made(tmp_path, "bad", bytes(damaged))).startswith("bad: byte ")


def test_five_levels_take_addresses_of_57_bits(tmp_path):
    path = made(tmp_path, "t", b" L 800000000000,4\n L ff00000000000000,4\n")
    (chunk,) = open_trace(path, levels=5).chunks()
    assert (chunk >> 18).tolist() == [1 << 35, 1 << 44]


def test_a_trace_of_fetches_alone_holds_no_data_accesses(tmp_path):
    trace = open_trace(made(tmp_path, "t", b"I  1000,4\n"))
    assert [chunk.tolist() for chunk in trace.chunks("instructions")] == [pack(1, is_fetch=1).tolist()]
    with pytest.raises(BadInput, match="holds no data accesses"):
        list(trace.chunks("data"))
