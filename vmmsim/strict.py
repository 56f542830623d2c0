"""Plain data from TOML to frozen descriptions and back, strictly: no guesses, and every mistake named.

Keys are the fields' names, with one rule. A field whose name ends in a unit is written without it, and its
value carries the unit: ``size_bytes`` is ``size = "32KiB"``, ``frequency_hz`` is ``frequency = "2.2GHz"``,
``boot_ns`` is ``boot = "20h"``.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar, get_args, get_origin

import attrs
from cattrs import (
    BaseValidationError,
    ClassValidationError,
    Converter,
    ForbiddenExtraKeysError,
    IterableValidationError,
)
from cattrs.cols import homogenous_tuple_structure_factory
from cattrs.dispatch import StructureHook
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, mapping_structure_factory, override

from vmmsim import addresses
from vmmsim.errors import BadInput, Problem
from vmmsim.hints import hint, shown, unknown

T = TypeVar("T")


class Unit(NamedTuple):
    """How a quantity is read from text and written to it."""

    parse: Callable[[str], int]
    """From text to the whole number; ``BadInput`` says what is wrong."""
    write: Callable[[int], str]
    """From the whole number to text, exactly."""
    wanted: str
    """What to say of a value that is not even text."""


UNITS: Final = {
    "_bytes": Unit(addresses.parse_bytes, addresses.write_bytes, 'a size; write e.g. "64GiB"'),
    "_hz": Unit(addresses.parse_frequency, addresses.write_frequency, 'a frequency; write e.g. "2.2GHz"'),
    "_ns": Unit(addresses.parse_duration, addresses.write_duration, 'a duration; write e.g. "1d2h30m" or "10ms"'),
}
"""The ends of field names that are units."""

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_AT: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def load_toml(path: str | Path) -> dict[str, Any]:
    """Return what the TOML file ``path`` holds; ``BadInput`` if it cannot be read or is no TOML."""
    try:
        text = Path(path).read_bytes().decode()
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise BadInput("no such file", file=path) from None
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", file=path) from None
    except UnicodeDecodeError as error:
        raise BadInput("is not UTF-8 text", file=path, path=f"byte {error.start}") from None
    except RecursionError:
        raise BadInput("is nested too deeply", file=path) from None
    except ValueError as error:  # tomllib lets the errors of int() and datetime through
        where, message = _where_and_what(str(error))
        raise BadInput(f"is not TOML: {message}", file=path, path=where) from None
    if not data:
        raise BadInput("is empty", file=path)
    return data


def structure(cls: type[T], data: Mapping[str, Any], file: object = "") -> T:
    """Return the description of class ``cls`` that ``data`` spells out.

    Raise ``BadInput`` with every mistake, in the order of ``data``. Values are never converted: 2.7 is not a
    whole number, "3" is not a number and true is not 1. Whatever ``cls`` itself refuses (a ``ValueError`` at
    birth) is a problem at that place; a ``BadInput`` may name a place below it.
    """
    try:
        return _CONVERTER.structure(data, cls)
    except (BaseValidationError, ValueError) as error:
        problems = [Problem(str(file), path, message) for path, message in _flatten(error, "")]
    position = {path: n for n, path in enumerate(_paths(data, ""))}
    problems.sort(key=lambda problem: position.get(problem.path, -1))
    raise BadInput.of(problems)


def unstructure(description: object) -> dict[str, Any]:
    """Return ``description`` as a file would spell it, defaults included: the inverse of ``structure``."""
    plain: dict[str, Any] = _CONVERTER.unstructure(description)
    return plain


def leaves(data: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of all in ``data`` that is no table and no list; an empty list is a value."""
    below = list(_children(data, path))
    if not below and data != {}:
        yield path, data
    for child_path, child in below:
        yield from leaves(child, child_path)


def join(path: str, key: str | int) -> str:
    """Return the path of ``key`` in what is at ``path``: ``vm.db``, ``event[0]``, ``arms."no filter"``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    written = key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)
    return f"{path}.{written}" if path else written


def _where_and_what(message: str) -> tuple[str, str]:
    """Split tomllib's "Invalid value (at line 3, column 5)" into place and message."""
    at = _AT.search(message)
    where = "" if at is None else f"line {at[1]}, column {at[2]}" if at[1] else "end of file"
    what = message[: at.start()] if at else message
    return where, what[:1].lower() + what[1:]


def _children(data: object, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping):
        yield from ((join(path, key), value) for key, value in data.items())
    elif isinstance(data, list | tuple):
        yield from ((join(path, n), value) for n, value in enumerate(data))


def _paths(data: object, path: str) -> Iterator[str]:
    yield path
    for child_path, child in _children(data, path):
        yield from _paths(child, child_path)


# --- cattrs, made strict ---


class _UnexpectedError(ValueError):
    """A value is not of the kind that its key takes."""

    def __init__(self, value: object, wanted: str) -> None:
        super().__init__(f"{shown(value)} is not {wanted}")


def _key(field: str) -> str:
    """Return the key that a file uses for ``field``."""
    unit = _unit(field)
    return field.removesuffix(unit) if unit else field


def _unit(field: str) -> str | None:
    return next((end for end in UNITS if field.endswith(end)), None)


def _flatten(error: Exception, path: str) -> Iterator[tuple[str, str]]:
    """Yield path and message of every mistake in the tree of exceptions that cattrs raised for ``path``."""
    if isinstance(error, ClassValidationError):
        noted, others = error.group_exceptions()
        for inner, note in noted:
            yield from _flatten_field(inner, path, _key(note.name))
        for inner in others:
            yield from _flatten(inner, path)
    elif isinstance(error, IterableValidationError):
        for inner, item in error.group_exceptions()[0]:
            yield from _flatten(inner, join(path, item.index))
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [_key(field.name) for field in attrs.fields(error.cl) if field.init]
        for key in sorted(error.extra_fields):
            yield path, f"unknown key {shown(key)}{hint(key, known)}"
    elif isinstance(error, BadInput):
        for problem in error.problems:
            yield f"{path}.{problem.path}".strip("."), problem.message
    elif isinstance(error, ValueError):
        yield path, str(error)
    else:
        raise error  # not the user's mistake but ours


def _flatten_field(error: Exception, path: str, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(error, KeyError):
        yield path, f"{shown(key)} is missing"
    else:
        yield from _flatten(error, join(path, key))


def _whole(value: object, _: type) -> int:
    if type(value) is not int:
        raise _UnexpectedError(value, "a whole number")
    if not -(1 << 63) <= value < 1 << 63:
        raise _UnexpectedError(value, "within 64 bits")
    return value


def _number(value: object, _: type) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise _UnexpectedError(value, "a number")
    return float(value)  # type: ignore[arg-type]


def _truth(value: object, _: type) -> bool:
    if type(value) is not bool:
        raise _UnexpectedError(value, "true or false")
    return value


def _text(value: object, _: type) -> str:
    if type(value) is not str:
        raise _UnexpectedError(value, 'text; write it in "quotes"')
    return value


def _choice(value: object, choices: Any) -> Any:
    known = get_args(choices)
    if not any(value == one and type(value) is type(one) for one in known):
        raise ValueError(unknown(value, known))
    return value


def _quantity(unit: Unit) -> StructureHook:
    def parse(value: object, _: Any) -> int:
        if type(value) is not str:
            raise _UnexpectedError(value, unit.wanted)
        return unit.parse(value)

    return parse


def _table(cls: type, converter: Converter) -> StructureHook:
    quantities: Any = {
        field.name: override(rename=_key(field.name), struct_hook=_quantity(UNITS[unit]))
        for field in attrs.fields(cls)
        if (unit := _unit(field.name))
    }
    fill: StructureHook = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True, **quantities)
    return _only(Mapping, "a table", fill)


def _only(kind: type, wanted: str, fill: StructureHook) -> StructureHook:
    """Return ``fill`` for values of ``kind``; cattrs alone would iterate over a text where a list belongs."""

    def structure_kind(value: Any, cls: Any) -> Any:
        if not isinstance(value, kind):
            raise _UnexpectedError(value, wanted)
        return fill(value, cls)

    return structure_kind


def _plain(cls: type, converter: Converter) -> Callable[[Any], dict[str, Any]]:
    quantities: Any = {
        field.name: override(rename=_key(field.name), unstruct_hook=UNITS[unit].write)
        for field in attrs.fields(cls)
        if (unit := _unit(field.name))
    }
    spell: Callable[[Any], dict[str, Any]] = make_dict_unstructure_fn(cls, converter, **quantities)
    return lambda value: {key: inner for key, inner in spell(value).items() if inner is not None}


def _is(origin: object) -> Callable[[Any], bool]:
    return lambda cls: get_origin(cls) is origin


def _is_list(cls: Any) -> bool:
    return _is(tuple)(cls) and get_args(cls)[1:] == (...,)


def _lists(cls: Any, converter: Converter) -> StructureHook:
    fill = homogenous_tuple_structure_factory(cls, converter)
    return _only(list, "a list; write it in [brackets]", fill)


def _mappings(cls: Any, converter: Converter) -> StructureHook:
    return _only(Mapping, "a table", mapping_structure_factory(cls, converter))


def _strict_converter() -> Converter:
    converter = Converter(detailed_validation=True)
    converter.register_structure_hook(int, _whole)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(bool, _truth)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook_func(_is(Literal), _choice)
    converter.register_structure_hook_factory(_is_list, _lists)
    converter.register_structure_hook_factory(_is(dict), _mappings)
    converter.register_structure_hook_factory(attrs.has, _table)
    converter.register_unstructure_hook_factory(attrs.has, _plain)
    return converter


_CONVERTER: Final = _strict_converter()
