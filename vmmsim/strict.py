"""Plain data from TOML to frozen descriptions and back, strictly: no guesses, and every mistake named.

Keys are the fields' names, with one rule. A field whose name ends in a unit is written without it, and its
value carries the unit: ``size_bytes`` is ``size = "32KiB"``, ``frequency_hz`` is ``frequency = "2.2GHz"``,
``boot_ns`` is ``boot = "20h"``. What classes spell otherwise, they note in the words of ``spelling``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
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
from vmmsim.paths import every_path, join, leaves, upwards
from vmmsim.spelling import AS_LIST, NO_KEY, REST, TAGGED
from vmmsim.toml_file import load_toml

__all__ = [
    "UNITS",
    "Mistake",
    "Unit",
    "in_order",
    "join",
    "key_of",
    "keys",
    "leaves",
    "load_toml",
    "mistakes",
    "structure",
    "unit_of",
    "unstructure",
]

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
    "_bytes_per_second": Unit(addresses.parse_rate, addresses.write_rate, 'a rate; write e.g. "1GiB/s"'),
    "_bytes": Unit(addresses.parse_bytes, addresses.write_bytes, 'a size; write e.g. "64GiB"'),
    "_hz": Unit(addresses.parse_frequency, addresses.write_frequency, 'a frequency; write e.g. "2.2GHz"'),
    "_ns": Unit(addresses.parse_duration, addresses.write_duration, 'a duration; write e.g. "1d2h30m" or "10ms"'),
}
"""The ends of field names that are units; of two that fit a name, the first."""


def structure(cls: type[T], data: Mapping[str, Any], file: object = "") -> T:
    """Return the description of class ``cls`` that ``data`` spells out.

    Raise ``BadInput`` with every mistake, in the order of ``data``. Values are never converted: 2.7 is not a
    whole number, "3" is not a number and true is not 1. Whatever ``cls`` itself refuses (a ``ValueError`` at
    birth) is a problem at that place; a ``BadInput`` may name a place below it.
    """
    found = mistakes(cls, data)
    if isinstance(found, list):
        raise BadInput.of([Problem(str(file), path, message) for path, message, _ in in_order(found, data)])
    return found


class Mistake(NamedTuple):
    """One mistake in plain data."""

    path: str
    """Where it is said to be."""
    message: str
    """What is wrong, and what would be right."""
    place: str
    """Path of the very key that is wrong, by which mistakes are ordered; may be one that data does not have."""


def mistakes(cls: type[T], data: object, path: str = "") -> T | list[Mistake]:
    """Return the description that ``data``, found at ``path``, spells out, or else all that is wrong, unordered."""
    try:
        return _CONVERTER.structure(data, cls)
    except (BaseValidationError, ValueError) as error:
        return list(_flatten(error, path))


def in_order(found: list[Mistake], data: object) -> list[Mistake]:
    """Return ``found`` in the order of ``data``: what is not in it stands where the nearest table above it does."""
    position = {path: n for n, path in enumerate(every_path(data))}
    return sorted(
        found, key=lambda mistake: next(position[path] for path in upwards(mistake.place) if path in position)
    )


def unstructure(description: object) -> dict[str, Any]:
    """Return ``description`` as a file would spell it, defaults included: the inverse of ``structure``."""
    plain: dict[str, Any] = _CONVERTER.unstructure(description)
    return plain


def key_of(field: str) -> str:
    """Return the key that a file uses for ``field``."""
    unit = unit_of(field)
    return field.removesuffix(unit) if unit else field


def unit_of(field: str) -> str | None:
    """Return the end of the name ``field`` that is one of ``UNITS``; None if there is none."""
    return next((end for end in UNITS if field.endswith(end)), None)


def keys(cls: type) -> list[str]:
    """Return the keys that a table of class ``cls`` can have, apart from those that are left to its rest."""
    return [key_of(field.name) for field in attrs.fields(cls) if field.init and field.metadata not in (NO_KEY, REST)]


# --- cattrs, made strict ---


class _UnexpectedError(ValueError):
    """A value is not of the kind that its key takes."""

    def __init__(self, value: object, wanted: str) -> None:
        super().__init__(f"{shown(value)} is not {wanted}")


def _flatten(error: Exception, path: str) -> Iterator[Mistake]:
    """Yield every mistake in the tree of exceptions that cattrs raised for ``path``."""
    if isinstance(error, ClassValidationError):
        noted, others = error.group_exceptions()
        for inner, note in noted:
            yield from _flatten_field(inner, path, key_of(note.name))
        for inner in others:
            yield from _flatten(inner, path)
    elif isinstance(error, IterableValidationError):
        for inner, item in error.group_exceptions()[0]:
            yield from _flatten(inner, join(path, item.index))
    elif isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(error.extra_fields):
            yield Mistake(path, f"unknown key {shown(key)}{hint(key, _known(error.cl))}", join(path, key))
    elif isinstance(error, _TagError):
        yield Mistake(path, str(error), join(path, error.key))
    elif isinstance(error, BadInput):
        for problem in error.problems:
            below = f"{path}{'' if problem.path.startswith('[') else '.'}{problem.path}".strip(".")
            yield Mistake(below, problem.message, below)
    elif isinstance(error, ValueError):
        yield Mistake(path, str(error), path)
    else:
        raise error  # not the user's mistake but ours


def _flatten_field(error: Exception, path: str, key: str) -> Iterator[Mistake]:
    if isinstance(error, KeyError):
        yield Mistake(path, f"{shown(key)} is missing", path)
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


def _known(cls: type) -> list[str]:
    """Return the keys of ``cls`` and, where it is one of several that a key tells apart, that key."""
    tagged = getattr(cls, TAGGED, None)
    return ([tagged[0]] if tagged else []) + keys(cls)


def _quantity(unit: Unit, word: str | None) -> StructureHook:
    wanted = unit.wanted + (f" or {shown(word)}" if word else "")

    def parse(value: object, _: Any) -> int | None:
        if word is not None and value == word:
            return None
        if type(value) is not str:
            raise _UnexpectedError(value, wanted)
        try:
            return unit.parse(value)
        except BadInput:
            raise _UnexpectedError(value, wanted) from None

    return parse


def _written(unit: Unit, word: str | None) -> Callable[[int | None], str | None]:
    return lambda value: word if value is None else unit.write(value)


def _overrides(cls: type) -> Any:
    """Return what cattrs must know of the fields of ``cls`` that are spelt in another way than by default."""
    special: dict[str, Any] = {}
    for field in attrs.fields(cls):
        word = field.metadata.get("word")
        if field.metadata == NO_KEY:
            special[field.name] = override(omit=True)
        elif unit := unit_of(field.name):
            special[field.name] = override(
                rename=key_of(field.name),
                struct_hook=_quantity(UNITS[unit], word),
                unstruct_hook=_written(UNITS[unit], word),
            )
    return special


def _table(cls: type, converter: Converter) -> StructureHook:
    if TAGGED in vars(cls):
        return _only(Mapping, "a table", _tagged(cls, converter))
    fill: StructureHook = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True, **_overrides(cls))
    if rest := _rest(cls):
        fill = _gathering(cls, rest, fill)
    if kind := _kind(cls):
        fill = _untagged(kind, fill)
    if hasattr(cls, AS_LIST):
        return _only(list, "a list; write it in [brackets]", _from_list(cls, fill))
    return _only(Mapping, "a table", fill)


def _kind(cls: type) -> tuple[str, str] | None:
    """Return the key and value that tell the class ``cls`` from others of its base; None if nothing has to."""
    if not hasattr(cls, TAGGED) or TAGGED in vars(cls):
        return None
    key, kinds = getattr(cls, TAGGED)
    return key, next(name for name, kind in kinds.items() if kind is cls)


def _untagged(kind: tuple[str, str], fill: StructureHook) -> StructureHook:
    """Return ``fill`` for tables that may hold the key and value ``kind`` as well."""
    return lambda value, cls: fill({k: v for k, v in value.items() if (k, v) != kind}, cls)


def _rest(cls: type) -> str | None:
    return next((field.name for field in attrs.fields(cls) if field.metadata == REST), None)


def _gathering(cls: type, rest: str, fill: StructureHook) -> StructureHook:
    """Return ``fill`` for tables whose keys that no field takes are gathered in the field ``rest``."""
    own = keys(cls)

    def structure_open(value: Any, _: Any) -> Any:
        others = {key: inner for key, inner in value.items() if key not in own}
        for path, leaf in leaves(others):
            if not isinstance(leaf, str | int | float | bool | list):
                raise BadInput(f"{shown(leaf)} is no text, number, list or table", path=path)
        return fill({key: inner for key, inner in value.items() if key in own} | {rest: others}, cls)

    return structure_open


def _from_list(cls: type, fill: StructureHook) -> StructureHook:
    """Return ``fill`` for lists of the values of the fields of ``cls``, in order."""
    own = keys(cls)

    def structure_list(value: Any, _: Any) -> Any:
        if len(value) != len(own):
            raise ValueError(f"{len(value)} values where {len(own)} belong: [{', '.join(own)}]")
        try:
            return fill(dict(zip(own, value, strict=True)), cls)
        except (BaseValidationError, ValueError) as error:
            places = {key: f"[{n}]" for n, key in enumerate(own)}
            found = [Problem("", places.get(path, ""), message) for path, message, _ in _flatten(error, "")]
            raise BadInput.of(found) from None

    return structure_list


class _TagError(ValueError):
    """The key that tells which class a table is of is missing or unknown."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def _tagged(base: type, converter: Converter) -> StructureHook:
    """Return a hook for tables of one of several classes, told apart by a key."""
    key, kinds = getattr(base, TAGGED)

    def structure_tagged(value: Any, _: Any) -> Any:
        if key not in value:
            raise _TagError("", f"{shown(key)} is missing{hint('', kinds)}")
        if not isinstance(value[key], str) or value[key] not in kinds:
            raise _TagError(key, f"{key} = {unknown(value[key], kinds)}")
        return converter.structure({k: v for k, v in value.items() if k != key}, kinds[value[key]])

    return structure_tagged


def _only(kind: type, wanted: str, fill: StructureHook) -> StructureHook:
    """Return ``fill`` for values of ``kind``; cattrs alone would iterate over a text where a list belongs."""

    def structure_kind(value: Any, cls: Any) -> Any:
        if not isinstance(value, kind):
            raise _UnexpectedError(value, wanted)
        return fill(value, cls)

    return structure_kind


def _plain(cls: type, converter: Converter) -> Callable[[Any], Any]:
    if TAGGED in vars(cls):
        return lambda value: converter.unstructure(value, type(value))
    spell: Callable[[Any], dict[str, Any]] = make_dict_unstructure_fn(cls, converter, **_overrides(cls))
    rest = _rest(cls)
    tag = dict([kind]) if (kind := _kind(cls)) else {}

    def write(value: Any) -> Any:
        written = {key: inner for key, inner in spell(value).items() if inner is not None}
        others = written.pop(rest) if rest else {}
        return list(written.values()) if hasattr(cls, AS_LIST) else tag | written | others

    return write


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
