"""Dataclasses as JSON text, and back: a file of another form is refused with the place where it differs."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rewards.errors import UserError

Form = TypeVar("Form")


def as_text(value: Any) -> str:
    """A dataclass or plain value as indented JSON with a line feed at its end; equal values give equal bytes."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def read_json(path: str | Path, form: type[Form], *, version: int, remedy: str) -> Form:
    """The dataclass that a file holds.

    Args:
        path: of the file.
        form: a dataclass whose fields are dataclasses, lists, mappings, literals and plain values.
        version: what its field `version` must be.
        remedy: ends every message.

    Raises:
        UserError: no such file, or one that does not hold this version of the form.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing (looked from {Path.cwd()}). {remedy}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}. {remedy}") from error
    if not isinstance(value, dict) or value.get("version") != version:
        raise UserError(f"{path} is no {form.__name__} of version {version}. {remedy}")
    try:
        return _built(form, value, "")
    except ValueError as error:
        raise UserError(f"{path}: {error} {remedy}") from error


def _built(form: Any, value: Any, place: str) -> Any:
    """`value` as the type `form`; a UserError names the place if it is none."""
    origin, arguments = get_origin(form), get_args(form)
    if form is Any:
        return value
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _built(inner, value, place)
    if isinstance(form, type) and is_dataclass(form):
        names = [field.name for field in fields(form)]
        if not isinstance(value, dict) or value.keys() != set(names):
            found = sorted(value) if isinstance(value, dict) else value
            raise UserError(f"{place or 'the file'} must hold {', '.join(names)}, but it is {found!r:.200}.")
        hints = get_type_hints(form)
        return form(**{name: _built(hints[name], value[name], f"{place}.{name}".strip(".")) for name in names})
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_built(arguments[0], element, f"{place}[{number}]") for number, element in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {name: _built(arguments[1], element, f"{place}.{name}") for name, element in value.items()}
    allowed = arguments if origin is Literal else ()
    kinds = (int, float) if form is float else form if isinstance(form, type) else ()
    if value not in allowed and (not isinstance(value, kinds) or (isinstance(value, bool) and form is not bool)):
        raise UserError(f"{place} is {value!r:.200}; it must be {' or '.join(map(repr, allowed)) or form.__name__}.")
    return value
