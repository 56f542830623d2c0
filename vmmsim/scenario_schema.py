"""The JSON Schema of scenario files, made from the descriptions: for editors, and for programs that write scenarios.

It says of each key what ``strict`` takes; what parts do not allow together is for ``vmmsim validate``.
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from vmmsim import scenario
from vmmsim.scenario import BALLOON_POLICIES, DRAM_RATES, POLICIES, PROGRAMS, Scenario
from vmmsim.spelling import AS_LIST, NO_KEY, REST, TAGGED
from vmmsim.strict import key_of, unit_of

_NUMBER: Final = r"[0-9]+(\.[0-9]+)?"
_SIZE: Final = rf"{_NUMBER}\s*([KkMmGgTt][Ii])?[Bb]"
PATTERNS: Final = {
    "_bytes_per_second": rf"^\s*{_SIZE}/s\s*$",
    "_bytes": rf"^\s*({_SIZE}|{_NUMBER})\s*$",
    "_ns": rf"^\s*(?=[0-9])({')?('.join(_NUMBER + unit for unit in ('y', 'd', 'h', 'm', 's', 'ms', 'us', 'ns'))})?\s*$",
}
"""What a quantity of each unit looks like."""

_CODE: Final = {"type": "string", "pattern": r"^[^:\s]+:[A-Za-z_][A-Za-z0-9_.]*$"}
_SHARE: Final = {"minimum": 0, "maximum": 1}
_FROM_1: Final = {"minimum": 1}
_FROM_0: Final = {"minimum": 0}
_LIMITS: Final[dict[str, dict[str, Any]]] = {
    "Run.seed": _FROM_0,
    "Run.scale": _FROM_1,
    "Run.script": _CODE,
    "Run.costs": {"minItems": 1},
    "Compaction.proactiveness": {"minimum": 0, "maximum": 100},
    "BalloonPolicy.policy": {"anyOf": [{"enum": list(BALLOON_POLICIES)}, _CODE]},
    "Dimms.count": _FROM_1,
    "Dimms.ranks": _FROM_1,
    "Faults.rates": {"enum": list(DRAM_RATES)},
    "Faults.spread": _FROM_0,
    "Faults.acceleration": {"exclusiveMinimum": 0},
    "Escape.bits": _FROM_0,
    "Escape.hashes": {"minimum": 1, "maximum": 4},
    "Escape.members": {"minimum": 1, "maximum": 256},
    "LoadStep.share": _SHARE,
    "Workload.name": {"enum": list(PROGRAMS)},
    "Workload.use": _CODE,
    "VM.vcpus": {"minimum": 1, "maximum": 1024},
    "VM.count": {"minimum": 1, "maximum": 4096},
    "VM.mode_policy": {"anyOf": [{"enum": list(POLICIES)}, _CODE]},
    "Actor.use": _CODE,
    "Measure.as_if": {"uniqueItems": True},
    "Measure.window": {"minimum": 1000},
    "Measure.epoch_share": {"exclusiveMinimum": 0, "maximum": 1},
    "Sweep.replications": _FROM_1,
    "Sweep.until_half_width": {"exclusiveMinimum": 0},
    "FaultEvent.gfn": _FROM_0,
    "FaultEvent.hfn": _FROM_0,
    "FaultEvent.pages": _FROM_1,
    "LoadEvent.share": _SHARE,
    "Scenario.vm": {"propertyNames": {"pattern": "^[A-Za-z0-9_-]+$"}},
}
"""What a description checks of single values, where JSON Schema has words for it."""


def scenario_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of scenario files."""
    parts: dict[str, Any] = {}
    whole = _table(Scenario, parts)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "vmmsim/scenario/1",
        "title": "vmmsim scenario",
        **whole,
        "anyOf": [
            {"required": ["vm"], "properties": {"vm": {"minProperties": 1}}},
            {"required": ["run"], "properties": {"run": {"required": ["script"]}}},
        ],
        "$defs": {name: parts[name] for name in sorted(parts)},
    }


def _table(cls: type, parts: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a table of class ``cls``, and add those of what it holds to ``parts``."""
    fields = [field for field in attrs.fields(cls) if field.metadata not in (NO_KEY, REST)]
    open_ended = any(field.metadata == REST for field in attrs.fields(cls))
    return {
        "description": (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " "),
        "type": "object",
        "additionalProperties": open_ended,
        "required": [key_of(field.name) for field in fields if field.default is attrs.NOTHING],
        "properties": {key_of(field.name): _field(cls, field, parts) for field in fields},
    }


def _field(cls: type, field: Any, parts: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one key: its type, its limits and what it means."""
    held = _of_type(get_type_hints(cls)[field.name], parts)
    if unit := unit_of(field.name):
        held = {"type": "string", "pattern": PATTERNS[unit]}
        if word := field.metadata.get("word"):
            held = {"anyOf": [held, {"const": word}]}
    held = {**held, **_LIMITS.get(f"{cls.__name__}.{field.name}", {})}
    return {"description": _meaning(cls, field.name), **held}


def _of_type(hint: Any, parts: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of what a type annotation allows."""
    plain = {int: "integer", float: "number", bool: "boolean", str: "string"}
    inner = get_args(hint)
    if hint in plain:
        return {"type": plain[hint]}
    if get_origin(hint) is Literal:
        return {"enum": list(inner)}
    if get_origin(hint) in (UnionType, Union):
        (only,) = (one for one in inner if one is not NoneType)
        return _of_type(only, parts)
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _of_type(inner[0], parts)}
    if get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": _of_type(inner[1], parts)}
    return _of_class(hint, parts) if attrs.has(hint) else {}


def _of_class(cls: type, parts: dict[str, Any]) -> dict[str, Any]:
    """Return a reference to the schema of a class, which goes into ``parts``."""
    if TAGGED in vars(cls):
        parts[cls.__name__] = _one_of(cls, parts)
    elif hasattr(cls, AS_LIST):
        parts[cls.__name__] = _pair(cls, parts)
    else:
        parts[cls.__name__] = _table(cls, parts)
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _one_of(base: type, parts: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a table of one of several classes, which a key tells apart."""
    key, kinds = getattr(base, TAGGED)
    choices = []
    for name, kind in kinds.items():
        table = _table(kind, parts)
        meaning = {"const": name, "description": table["description"]}
        choices.append(
            {**table, "required": [key, *table["required"]], "properties": {key: meaning, **table["properties"]}}
        )
    return {
        "description": (inspect.getdoc(base) or "").split("\n")[0],
        "type": "object",
        "required": [key],
        "properties": {key: {"enum": list(kinds)}},
        "oneOf": choices,
    }


def _pair(cls: type, parts: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a table that is spelt as a list of its values."""
    table = _table(cls, parts)
    values = list(table["properties"].values())
    return {
        "description": table["description"],
        "type": "array",
        "prefixItems": values,
        "minItems": len(values),
        "items": False,
    }


def _meaning(cls: type, field: str) -> str:
    """Return the line under a field, in the class itself or the one that it is from."""
    return next(lines[field] for base in cls.__mro__ if field in (lines := _meanings().get(base.__name__, {})))


@cache
def _meanings() -> dict[str, dict[str, str]]:
    """Return, by class and field, the line that stands under each field of the descriptions."""
    found: dict[str, dict[str, str]] = {}
    for module in (scenario, scenario.events, scenario.host, scenario.vm):
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = _lines_under(node.body)
    return found


def _lines_under(body: list[ast.stmt]) -> dict[str, str]:
    return {
        above.target.id: " ".join(str(below.value.value).split())
        for above, below in pairwise(body)
        if isinstance(above, ast.AnnAssign)
        and isinstance(above.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }
