"""The strict reader: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import tomllib
from typing import Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim import addresses, strict
from vmmsim.errors import BadInput


@attrs.frozen(kw_only=True)
class Disk:
    size_bytes: int
    kind: Literal["nvme", "ssd"] = "nvme"

    def __attrs_post_init__(self) -> None:
        if self.size_bytes < 4096:
            raise ValueError("size must be at least one page")


@attrs.frozen(kw_only=True)
class Box:
    vcpus: int
    clock_hz: int = 10**9
    boot_ns: int = 0
    share: float = 0.5
    swap: bool = False
    name: str = ""
    disk: Disk | None = None
    disks: tuple[Disk, ...] = ()
    arms: dict[str, Disk] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        if self.vcpus > 64:
            raise BadInput("at most 64 fit", path="vcpus")


def read(text: str) -> Box:
    return strict.structure(Box, tomllib.loads(text), "day.toml")


def problems_of(text: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        read(text)
    return [str(problem) for problem in caught.value.problems]


def test_a_unit_goes_from_the_name_of_a_field_into_its_value() -> None:
    box = read('vcpus = 2\nclock = "2.2GHz"\nboot = "1d2h30m"\ndisk = { size = "64GiB", kind = "ssd" }\nshare = 1')
    assert box == Box(
        vcpus=2,
        clock_hz=2_200_000_000,
        boot_ns=(26 * 3600 + 30 * 60) * 10**9,
        disk=Disk(size_bytes=64 << 30, kind="ssd"),
        share=1.0,
    )


def test_what_is_written_out_reads_back_the_same() -> None:
    box = Box(vcpus=1, boot_ns=90 * 10**9, disks=(Disk(size_bytes=4097),), arms={"no filter": Disk(size_bytes=8192)})
    assert strict.structure(Box, strict.unstructure(box)) == box


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("vcpus = 2.7", "vcpus: 2.7 is not a whole number"),
        ("vcpus = 2.0", "vcpus: 2.0 is not a whole number"),
        ('vcpus = "3"', 'vcpus: "3" is not a whole number'),
        ("vcpus = true", "vcpus: true is not a whole number"),
        ("vcpus = []", "vcpus: a list is not a whole number"),
        ("vcpus = 9223372036854775808", "vcpus: 9223372036854775808 is not within 64 bits"),
        ("vcpus = 65", "vcpus: at most 64 fit"),
        ("swap = true", '"vcpus" is missing'),
        ("vcpus = 1\nvcpu = 2", 'unknown key "vcpu"; did you mean "vcpus"?'),
        ("vcpus = 1\nboot_ns = 2", 'unknown key "boot_ns"; did you mean "boot"?'),
        (
            "vcpus = 1\nzzz = 2",
            'unknown key "zzz"; known: "vcpus", "clock", "boot", "share", "swap", "name", "disk", "disks", "arms"',
        ),
        ("vcpus = 1\nboot = 20", 'boot: 20 is not a duration; write e.g. "1d2h30m" or "10ms"'),
        ('vcpus = 1\nboot = "1h2h"', 'boot: "1h2h" is not a duration; write e.g. "1d2h30m" or "10ms"'),
        ('vcpus = 1\nclock = "2.2"', 'clock: "2.2" is not a frequency; write e.g. "2.2GHz"'),
        ("vcpus = 1\nshare = nan", "share: nan is not a number"),
        ("vcpus = 1\nshare = true", "share: true is not a number"),
        ("vcpus = 1\nswap = 1", "swap: 1 is not true or false"),
        ("vcpus = 1\nname = 1979-05-27", 'name: 1979-05-27 is not text; write it in "quotes"'),
        ('vcpus = 1\ndisk = "64GiB"', 'disk: "64GiB" is not a table'),
        ('vcpus = 1\ndisk = { size = "64GG" }', 'disk.size: "64GG" is not a size; write e.g. "64GiB"'),
        ('vcpus = 1\ndisk = { size = "1KiB" }', "disk: size must be at least one page"),
        (
            'vcpus = 1\ndisk = { size = "1GiB", kind = "nmve" }',
            'disk.kind: "nmve" is unknown; did you mean "nvme"?',
        ),
        ('vcpus = 1\ndisk = { size = "1GiB", kind = 3 }', 'disk.kind: 3 is unknown; known: "nvme", "ssd"'),
        ('vcpus = 1\ndisks = { size = "1GiB" }', "disks: a table is not a list; write it in [brackets]"),
        ('vcpus = 1\ndisks = "ab"', 'disks: "ab" is not a list; write it in [brackets]'),
        ('vcpus = 1\ndisks = [{ size = "1GiB" }, {}]', 'disks[1]: "size" is missing'),
        ('vcpus = 1\narms = { "no filter" = 3 }', 'arms."no filter": 3 is not a table'),
        ("vcpus = 1\nname = 3\n", 'name: 3 is not text; write it in "quotes"'),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, problem: str) -> None:
    assert problems_of(text) == [f"day.toml: {problem}"]


def test_all_mistakes_are_named_at_once_in_the_order_of_the_file() -> None:
    text = """
    swap = "yes"
    disks = [{ kind = "sdd", sise = 1 }]
    vcpus = 2.5
    """
    assert problems_of(text) == [
        'day.toml: swap: "yes" is not true or false',
        'day.toml: disks[0]: "size" is missing',
        'day.toml: disks[0].kind: "sdd" is unknown; did you mean "ssd"?',
        'day.toml: disks[0]: unknown key "sise"; did you mean "size"?',
        "day.toml: vcpus: 2.5 is not a whole number",
    ]


def test_data_that_is_no_table_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^day\.toml: a list is not a table$"):
        strict.structure(Box, [1], "day.toml")  # type: ignore[arg-type]


def test_a_mistake_of_our_own_is_not_blamed_on_the_user() -> None:
    @attrs.frozen(kw_only=True)
    class Broken:
        entries: int

        def __attrs_post_init__(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        strict.structure(Broken, {"entries": 1})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab9 \n\x1b", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["vcpus", "disk", "disks", "arms", "size", "kind", "boot", "a.b"]), inner)
    ),
    max_leaves=8,
)


@given(data=st.dictionaries(st.sampled_from([*strict.unstructure(Box(vcpus=1)), "disk", "x"]), JSON))
def test_any_data_is_read_or_refused_in_single_lines(data: dict[str, object]) -> None:
    try:
        box = strict.structure(Box, data, "f")
    except BadInput as bad:
        lines = [str(problem) for problem in bad.problems]
    else:
        lines = []
        assert strict.structure(Box, strict.unstructure(box)) == box
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"a = \n", "line 1, column 5: is not TOML: invalid value"),
        (b"a = 1\na = 2\n", "line 2, column 6: is not TOML: cannot overwrite a value"),
        (b'a = "x', "end of file: is not TOML: unterminated string"),
        (b"a = 2024-13-45\n", None),
        (b"a = " + b"9" * 5000, None),
        (b'a = "\xff"', "byte 5: is not UTF-8 text"),
        (b"a = " + b"[" * 100_000, None),
    ],
)
def test_a_file_that_is_no_toml_is_refused_in_one_line(tmp_path, content: bytes, problem: str | None) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        strict.load_toml(file)
    (only,) = map(str, caught.value.problems)
    assert "\n" not in only
    assert only.startswith(f"{file}: ")
    assert problem is None or only == f"{file}: {problem}"


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.toml: no such file$"):
        strict.load_toml(tmp_path / "nowhere.toml")
    with pytest.raises(BadInput, match=r": cannot be read: Is a directory$"):
        strict.load_toml(tmp_path)


@given(count=st.integers(0, (1 << 63) - 1))
def test_quantities_are_written_exactly(count: int) -> None:
    assert addresses.parse_bytes(addresses.write_bytes(count)) == count
    assert addresses.parse_frequency(addresses.write_frequency(count)) == count
    assert addresses.parse_duration(addresses.write_duration(count)) == count


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0s", 0),
        ("10ms", 10**7),
        ("1.5h", 5400 * 10**9),
        ("1y", 365 * 86400 * 10**9),
        ("1d2h30m", 95400 * 10**9),
    ],
)
def test_durations_are_whole_nanoseconds(text: str, nanoseconds: int) -> None:
    assert addresses.parse_duration(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "5", "h", "1h 2x", "2m1h", "0.1ns", "-1s", "300y", "1e3s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is not a duration"):
        addresses.parse_duration(text)


@pytest.mark.parametrize("text", ["", "GiB", "-1", "64GB", "0.3B", "1e3", "9000000TiB", "٣GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is not a size"):
        addresses.parse_bytes(text)
