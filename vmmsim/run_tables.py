"""The four tables of a run: their columns, how rows become Arrow tables, and the digest of what happened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

from vmmsim.translation.state import Count

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION: Final = 1
"""Version of the columns below; it stands in the metadata of every table."""

Outcome = Literal["done", "refused", "failed", "begun", "aborted", "partial"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("done", "refused", "failed", "begun", "aborted", "partial")
"""How a decision ended: done; declined, and nothing changed; tried, and it did not work; begun, a later row says how
it ended; given up before its end; done in part."""

NO_CAUSE: Final = -1
"""``cause`` of a decision that no other one led to."""
OFF: Final = ""
"""``mode`` of a VM that does not run: not booted yet, or shut down."""

THE_VM: Final = "vm"
NATIVE_TWIN: Final = "native twin"
AS_IF: Final = "as if "
"""``level`` of the walks table, which says whose copy of the hardware counted: the VM's own; the twin that runs the
same accesses natively; "as if base" and the like, the shadows, which no digest covers."""


class Column(NamedTuple):
    """A column: its name with its unit at the end, what it holds, and what that means."""

    name: str
    kind: Literal["integer", "text", "real"]
    means: str


ORDERS: Final = 11
"""Orders of the buddy allocator, 0 to 10."""

DECISIONS: Final = (
    Column("t_ns", "integer", "simulated time"),
    Column("actor", "text", "who decided"),
    Column("vm", "text", "VM it is about; empty for the host"),
    Column("verb", "text", "what is to be done, as scenarios and Python call it"),
    Column("asked", "text", "how much was asked for"),
    Column("got", "text", "how much was got"),
    Column("outcome", "text", ", ".join(OUTCOMES)),
    Column("why", "text", "reason"),
    Column(
        "cost_ns",
        "integer",
        "how long it took; time lost by vCPUs where vcpu is the actor, else it went on beside the program",
    ),
    Column("cause", "integer", "row number of the decision that led here; -1 for none"),
)
VMS: Final = (
    Column("t_ns", "integer", "simulated time from which the row holds, until the VM's next row"),
    Column("vm", "text", "VM"),
    Column("mode", "text", "mode had; empty while the VM is off"),
    Column("mode_wanted", "text", "mode wanted"),
    Column("overhead", "real", "walk cycles over ideal cycles, from here on; null while unknown"),
    Column("overhead_low", "real", "lower end of its 95 % interval, bias bound included"),
    Column("overhead_high", "real", "upper end"),
    Column("progress", "integer", "accesses done since the VM's boot"),
    Column("resident_bytes", "integer", "host memory that backs the guest"),
    Column("balloon_bytes", "integer", "given up by the guest"),
    Column("balloon_target_bytes", "integer", "what the balloon is to hold"),
    Column("reusable_bytes", "integer", "of what was given up, reusable by the host"),
    Column("shared_bytes", "integer", "merged with equal pages"),
    Column("swapped_bytes", "integer", "swapped out by the VMM"),
    Column("guest_swapped_bytes", "integer", "swapped out by the guest"),
    Column("escaped_pages", "integer", "pages that escape a segment, true members and false positives"),
    Column("segment_bytes", "integer", "under the VMM segment"),
    Column("refs_per_walk", "real", "page-table references per walk; null if nothing was walked"),
)
HOST: Final = (
    Column("t_ns", "integer", "simulated time from which the row holds, until the next one"),
    Column("free_bytes", "integer", "free memory of the host"),
    Column("largest_free_bytes", "integer", "largest free run"),
    *(Column(f"free_blocks_{order}", "integer", f"free blocks of {1 << order} pages") for order in range(ORDERS)),
    Column("unusable_2m", "real", "share of free memory that lies in blocks under 2 MiB"),
    Column("page_table_bytes", "integer", "nested page tables"),
    Column("bad_frames", "integer", "frames retired"),
    Column("moved_bytes", "integer", "copied by compaction and evacuation since time 0"),
    Column("pages_shared", "integer", "frames that several pages share"),
    Column("pages_sharing", "integer", "pages mapped to them beyond the first of each: frames saved"),
    Column("pages_unshared", "integer", "pages that KSM looked for and found no equal of"),
    Column("pages_volatile", "integer", "pages that changed too fast for KSM, or were refused"),
    Column("full_scans", "integer", "times that KSM scanned all of guest memory"),
    Column("stable_node_chains", "integer", "contents that more pages have than one frame may be mapped by"),
    Column("general_profit", "integer", "bytes that page sharing saves, less what it keeps to know it"),
    Column("refused_pinned_vmm", "integer", "merges refused since time 0 because a VMM segment pins the page"),
    Column("unshared_writes", "integer", "shared pages that got a frame of their own again, since time 0"),
    Column("unsharing_ns", "integer", "time that this took from guests"),
    Column("ksmd_ns", "integer", "CPU time of page sharing since time 0"),
)
COUNTERS: Final = (*(count.name.lower() for count in Count), "references")
"""Counters of the walks table: those of the engine, and both kinds of reference together."""
WALKS: Final = (
    Column("vm", "text", "VM"),
    Column("mode", "text", "mode had while it counted"),
    Column("level", "text", 'whose hardware counted: "vm", "native twin" or "as if MODE"'),
    *(Column(name, "integer", "docs/engine.md") for name in COUNTERS),
)


COLUMNS: Final = {"vms": VMS, "host": HOST, "decisions": DECISIONS, "walks": WALKS}
"""Columns of each table; the vms table has one more for each mode of ``measure.as_if``."""
AS_IF_COLUMN: Final = "overhead_as_if_"


def as_if_column(mode: str) -> str:
    """Return the column of the vms table that holds the overhead as if the VM had ``mode``."""
    return AS_IF_COLUMN + mode.replace("-", "_")


def vms_columns(as_if: Iterable[str] = ()) -> tuple[Column, ...]:
    """Return the columns of the vms table of a run with these modes in ``measure.as_if``."""
    return (*VMS, *(Column(as_if_column(mode), "real", f"overhead as if in {mode}") for mode in as_if))


def digest(decisions: Iterable[Sequence[Any]], walks: Iterable[Sequence[Any]]) -> str:
    """Return SHA-256 of all decisions and of the counters that are part of the model, in hexadecimal.

    decisions, walks   rows with the columns DECISIONS and WALKS. Shadows do not count, nor does the order of walks.

    Every value is written with its kind and its end, so that no two contents have one encoding.
    """
    whole = hashlib.sha256(_encoded([column.name for column in (*DECISIONS, *WALKS)]))
    for row in decisions:
        whole.update(_encoded(row))
    counted = sorted((row for row in walks if not row[2].startswith(AS_IF)), key=lambda row: tuple(row[:3]))
    for row in counted:
        whole.update(_encoded(row))
    return whole.hexdigest()


def digest_of(tables: Mapping[str, pa.Table]) -> str:
    """Return the digest of a run's tables, the same as the recorder's that they came from."""
    return digest(
        *(
            zip(*(tables[name].column(column.name).to_pylist() for column in columns), strict=True)
            for name, columns in (("decisions", DECISIONS), ("walks", WALKS))
        )
    )


def _encoded(row: Iterable[Any]) -> bytes:
    return b"".join([_text(value) if isinstance(value, str) else b"i%d;" % value for value in row]) + b"\n"


def _text(value: str) -> bytes:
    letters = value.encode("utf-8", "surrogatepass")
    return b"t%d:%s" % (len(letters), letters)


def wrong_columns(name: str, schema: pa.Schema) -> str:
    """Return what is wrong with the schema of the table ``name``, "" if nothing is."""
    version = (schema.metadata or {}).get(b"schema_version", b"none").decode(errors="replace")
    if version != str(SCHEMA_VERSION):
        return f"its schema_version is {version}, not {SCHEMA_VERSION}"
    shadows = [field.name for field in schema if field.name.startswith(AS_IF_COLUMN)] if name == "vms" else []
    columns = (*COLUMNS[name], *(Column(shadow, "real", "") for shadow in shadows))
    wanted = [f"{column.name} {arrow_type(column)}" for column in columns]
    found = [f"{field.name} {field.type}" for field in schema]
    if wanted == found:
        return ""
    missing = [column for column in wanted if column not in found]
    extra = [column for column in found if column not in wanted]
    told = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(extra)}"] * bool(extra)
    return "; ".join(told) or "its columns are not in order"


def arrow_type(column: Column) -> pa.DataType:
    """Return the Arrow type of a column."""
    import pyarrow as pa

    return {"integer": pa.int64(), "text": pa.string(), "real": pa.float64()}[column.kind]


def arrow_table(name: str, columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> pa.Table:
    """Return rows of the table ``name`` as Arrow; the metadata holds the schema's version and what columns mean."""
    import pyarrow as pa

    fields = [
        pa.field(column.name, arrow_type(column), column.kind == "real", {"means": column.means}) for column in columns
    ]
    schema = pa.schema(fields, {"schema_version": str(SCHEMA_VERSION), "table": name})
    across = zip(*rows, strict=True) if rows else ([] for _ in columns)
    arrays = [pa.array(list(values), field.type) for values, field in zip(across, fields, strict=True)]
    return cast("pa.Table", pa.Table.from_arrays(arrays, schema=schema))
