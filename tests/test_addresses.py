"""Page sizes and page numbers; quantities, which are exact both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim import addresses as a
from vmmsim.errors import BadInput


def test_a_page_size_is_512_of_the_next_smaller_one() -> None:
    assert [a.size_pages(size) for size in (0, 1, 2)] == [1, 512, 512 * 512]
    assert [a.size_pages(size) * a.PAGE_BYTES for size in (0, 1, 2)] == [4 << 10, 2 << 20, 1 << 30]
    assert [a.size_number(name) for name in ("4K", "2M", "1G", "1g")] == [0, 1, 2, 2]


@pytest.mark.parametrize("name", ["", "4", "4KiB", "8K", "é"])
def test_another_name_is_no_page_size(name: str) -> None:
    with pytest.raises(BadInput, match="write 4K, 2M or 1G"):
        a.size_number(name)


@pytest.mark.parametrize(("levels", "bits"), [(4, 48), (5, 57)])
def test_an_address_has_12_bits_and_9_for_each_level(levels: int, bits: int) -> None:
    assert a.address_bits(levels) == bits
    top = 1 << (bits - 1)
    for address in (0, top - 1, -top, -1, (1 << 64) - 1, (1 << 64) - top):
        assert a.is_canonical(address, levels)
    for address in (top, (1 << 64) - top - 1, -top - 1, 1 << 63):
        assert not a.is_canonical(address, levels)
        with pytest.raises(BadInput, match=f"{levels}-level tables; bits 63 to {bits - 1} must be equal"):
            a.page_number(address, levels)


@given(st.sampled_from([4, 5]), st.integers(0, (1 << 45) - 1))
def test_a_page_number_and_its_address_are_inverse(levels: int, page: int) -> None:
    page %= 1 << 9 * levels
    address = a.virtual_address(page, levels)
    assert 0 <= address < 1 << 64
    assert a.is_canonical(address, levels)
    assert a.page_number(address, levels) == a.page_number(address + 4095, levels) == page
    signed = address - (1 << 64) if address >> 63 else address
    assert a.page_number(signed, levels) == page


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096), ("0", 0), ("1B", 1), ("64GiB", 64 << 30), ("512 MiB", 512 << 20), ("1.5KiB", 1536),
        (" 2tib ", 2 << 40), ("0.5 KiB", 512),
    ],
)  # fmt: skip
def test_a_size_is_read_exactly(text: str, count: int) -> None:
    assert a.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "1GB", "1 G", "-1", "1e9", "0.3B", "1,5KiB", "9999999TiB", "٣KiB"])
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(BadInput, match=r'write e\.g\. "64GiB"'):
        a.parse_bytes(text)


@given(st.integers(0, (1 << 63) - 1))
def test_written_sizes_frequencies_and_durations_are_read_back(count: int) -> None:
    assert a.parse_bytes(a.write_bytes(count)) == count
    assert a.parse_duration(a.write_duration(count)) == count
    if count:
        assert a.parse_frequency(a.write_frequency(count)) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (655360, "640 KiB"),
        (3 << 29, "1.5 GiB"), (1 << 40, "1 TiB"), (3986080 << 10, "3.8 GiB"), (4608 << 20, "4.5 GiB"),
        (1008 << 20, "1008 MiB"), ((1008 << 20) + 1, "1010 MiB"), (129 << 30 | 1 << 28, "129 GiB"),
    ],
)  # fmt: skip
def test_sizes_are_shown_in_three_figures_or_whole(count: int, text: str) -> None:
    assert a.format_bytes(count) == text


@pytest.mark.parametrize(("text", "hertz"), [("2.2GHz", 2_200_000_000), ("800 MHz", 800_000_000), ("1hz", 1)])
def test_a_frequency_is_read_exactly(text: str, hertz: int) -> None:
    assert a.parse_frequency(text) == hertz


@pytest.mark.parametrize("text", ["2200000000", "", "0.1Hz", "fast", "2.2"])
def test_a_frequency_needs_its_unit(text: str) -> None:
    with pytest.raises(BadInput, match="frequency"):
        a.parse_frequency(text)


SECOND = 10**9


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("10ms", 10**7), ("1d2h30m", (86400 + 7200 + 1800) * SECOND), ("0s", 0), ("1.5s", 1_500_000_000),
        ("1y", 365 * 86400 * SECOND), ("3us5ns", 3005), ("1m1ms", 60 * SECOND + 10**6), (" 2s ", 2 * SECOND),
    ],
)  # fmt: skip
def test_a_duration_is_read_exactly(text: str, nanoseconds: int) -> None:
    assert a.parse_duration(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "10", "1h2h", "1s1m", "1 h", "0.1ns", "-1s", "1e3s", "1w", "300y"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(BadInput, match="is not a duration"):
        a.parse_duration(text)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 ns"), (999, "999 ns"), (80_000, "80 us"), (1_500_000, "1.5 ms"), (999_999_999, "1000 ms"),
        (59 * 10**9, "59 s"), (61 * 10**9, "1 min 1 s"), (47 * 60 * 10**9, "47 min"), (7800 * 10**9, "2 h 10 min"),
        (86400 * 10**9, "1 d"), (400 * 86400 * 10**9, "1 y 35 d"), (5 * 365 * 86400 * 10**9, "5 y"),
    ],
)  # fmt: skip
def test_a_duration_is_told_in_two_units_at_most(nanoseconds: int, text: str) -> None:
    assert a.format_duration(nanoseconds) == text
