"""A copy of the whole state of a simulation between two events, to which it can be put back as often as one likes.

What is reachable from a simulation is copied: attributes, containers, arrays, streams of randomness. Putting it back
writes the copies into the very objects that were copied, so that everybody who holds them sees the old state. Left
alone are what cannot change (functions, descriptions), programs, which are functions of position, and generators: an
experiment must not step the clock.
"""

from __future__ import annotations

import itertools
from collections import deque
from types import BuiltinFunctionType, CellType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLAIN: Final = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    type,
    ModuleType,
    GeneratorType,
    np.number,
    np.bool_,
    itertools.count,
)
"""What has no state of its own."""
_OPAQUE: Final = ("vmmsim.workloads", "vmmsim.scenario", "vmmsim.config", "threading", "numpy.dtypes")
"""Modules whose objects do not change, or whose state is a cache of what they would say anyway."""


class Snapshot:
    """The state of all that is reachable from ``root``, as it was."""

    def __init__(self, root: object) -> None:
        self._arrays: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self._records: list[tuple[Any, Any]] = []
        """Structured scalars: the record of a core, a zone's book."""
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._lists: list[tuple[Any, list[Any]]] = []
        self._slots: list[tuple[object, str, object]] = []
        self._streams: list[tuple[np.random.BitGenerator, Any]] = []
        seen: dict[int, object] = {}
        waiting: list[object] = [root]
        while waiting:
            one = waiting.pop()
            if id(one) not in seen and not isinstance(one, _PLAIN) and not _is_opaque(one):
                seen[id(one)] = one
                waiting.extend(self._copy(one))
        self._kept = seen
        """Holds on to everything: an identity must not come to be another object's."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the arrays that are copied."""
        return sum(kept.nbytes for _, kept in self._arrays)

    def _copy(self, one: Any) -> Iterator[object]:
        """Keep the state of one object; yield what it leads to."""
        if isinstance(one, (np.ndarray, np.void, np.random.Generator)):
            yield from self._copy_data(one)
        elif isinstance(one, (dict, list, deque, set, tuple, frozenset)):
            yield from self._copy_container(one)
        elif isinstance(one, (MethodType, BuiltinFunctionType)):
            yield getattr(one, "__self__", None)
        elif isinstance(one, FunctionType):
            yield from one.__closure__ or ()
        elif isinstance(one, CellType):
            yield one.cell_contents
        else:
            yield from self._copy_instance(one)

    def _copy_data(self, one: Any) -> Iterator[object]:
        if isinstance(one, np.random.Generator):
            self._streams.append((one.bit_generator, one.bit_generator.state))
        elif isinstance(one, np.void):
            self._records.append((one, one.copy()))
        elif isinstance(one.base, np.ndarray):
            yield one.base
        elif one.flags.writeable:
            self._arrays.append((one, one.copy()))

    def _copy_container(self, one: Any) -> Iterator[object]:
        if isinstance(one, dict):
            self._dicts.append((one, dict(one)))
            yield from one.values()
        elif isinstance(one, (list, deque)):
            self._lists.append((one, list(one)))
        elif isinstance(one, set):
            self._sets.append((one, set(one)))
        yield from one

    def _copy_instance(self, one: object) -> Iterator[object]:
        """Keep the attributes of an object of a class; what kind of state anything else has must be known."""
        own = getattr(one, "__dict__", None)
        assert isinstance(own, dict) or any(True for _ in _slots_of(type(one))), f"no copy is kept of a {type(one)}"
        if isinstance(own, dict):
            yield own
        for name in _slots_of(type(one)):
            if hasattr(one, name):
                value = getattr(one, name)
                self._slots.append((one, name, value))
                yield value

    def restore(self) -> None:
        """Put everything back as it was."""
        self._restore_data()
        for table, entries in self._dicts:
            if not _same(table, entries):
                table.clear()
                table.update(entries)
        for row, members in self._lists:
            if [*map(id, row)] != [*map(id, members)]:
                row.clear()
                row.extend(members)
        for group, elements in self._sets:
            if group != elements:
                group.clear()
                group.update(elements)
        for one, name, value in self._slots:
            if getattr(one, name, None) is not value:
                object.__setattr__(one, name, value)

    def _restore_data(self) -> None:
        for array, held in self._arrays:
            if array.flags.c_contiguous and array.ndim:  # records are copied field by field, bytes all at once
                np.copyto(array.reshape(-1).view(np.uint8), held.reshape(-1).view(np.uint8))
            else:
                np.copyto(array, held)
        for record, before in self._records:
            for name in record.dtype.names or ():
                record[name] = before[name]
        for stream, state in self._streams:
            stream.state = state

    def differences(self) -> list[str]:
        """Return what is not as it was, one line each: for tests, and slow."""
        found = [f"array of {a.dtype}[{a.size}]" for a, kept in self._arrays if a.tobytes() != kept.tobytes()]
        found += [f"record of {a.dtype.names[:3]}" for a, kept in self._records if a.tobytes() != kept.tobytes()]
        found += [
            f"{type(a).__name__} with {sorted(map(str, kept))[:4]}" for a, kept in self._dicts if not _same(a, kept)
        ]
        found += [f"list of {len(kept)}" for a, kept in self._lists if [*map(id, a)] != [*map(id, kept)]]
        found += [f"set of {len(kept)}" for a, kept in self._sets if a != kept]
        found += [f"{type(a).__name__}.{n}" for a, n, v in self._slots if getattr(a, n, None) is not v]
        return found + ["stream" for a, state in self._streams if str(a.state) != str(state)]


def _is_opaque(one: object) -> bool:
    return type(one).__module__.startswith(_OPAQUE)


def _slots_of(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                yield name


def _same(now: dict[Any, Any], kept: dict[Any, Any]) -> bool:
    if len(now) != len(kept):
        return False
    return all(a is b and now[a] is kept[b] for a, b in zip(now, kept, strict=True))
