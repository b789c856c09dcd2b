"""Dataclasses survive the way to the disk and back; other forms are named with their place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from lightning_modules.evaluation.typed_json import as_text, read_json


@dataclass(frozen=True, kw_only=True)
class Part:
    size: float
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Whole:
    version: int = 3
    kind: Literal["a", "b"]
    parts: dict[str, Part]
    best: Part | None
    flags: list[bool]
    extra: dict[str, Any]


WHOLE = Whole(
    kind="a",
    parts={"日本": Part(size=0.1, names=("x", "y"))},
    best=None,
    flags=[True, False],
    extra={"anything": [1, {"goes": None}]},
)


def read(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return read_json(path, Whole, version=3, remedy="Write it anew.")


def test_what_is_written_is_read(tmp_path):
    assert read(tmp_path / "a.json", json.loads(as_text(WHOLE))) == WHOLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, r"a\.json is no Whole of version 3"),
        ({"kind": "c"}, r"kind is 'c'; it must be 'a' or 'b'"),
        ({"flags": [True, 1]}, r"flags\[1\] is 1; it must be bool"),
        ({"flags": "yes"}, r"flags is 'yes'; it must be list"),
        ({"best": {"size": 1}}, r"best must hold size, names, but it is \['size'\]"),
        ({"parts": {"p": {"size": True, "names": []}}}, r"parts\.p\.size is True; it must be float"),
        ({"color": 1}, r"the file must hold version, kind, parts, best, flags, extra, but it is"),
    ],
)
def test_other_forms_are_named_with_their_place(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"{message}.*Write it anew\.$"):
        read(tmp_path / "a.json", json.loads(as_text(WHOLE)) | change)
