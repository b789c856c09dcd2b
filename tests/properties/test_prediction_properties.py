"""Predictions are read back as they were written, and a damaged file is refused with its line."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rewards.errors import UserError
from rewards.evaluation.predictions import Prediction, read_predictions
from tests.properties.strategies import JSON_VALUES, SOUND_TEXT

TEXT_OR_NONE = st.none() | SOUND_TEXT
NAMED = st.dictionaries(SOUND_TEXT, SOUND_TEXT, max_size=3)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | SOUND_TEXT
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SOUND_TEXT, inner, max_size=3),
    max_leaves=6,
)
PREDICTIONS = st.builds(
    Prediction,
    benchmark=SOUND_TEXT,
    index=st.integers(0, 10**6),
    problem_id=SOUND_TEXT,
    problem_type=st.sampled_from(["multiple choice", "OCR"]),
    data_type=st.sampled_from(["video", "text"]),
    question=SOUND_TEXT,
    options=st.lists(SOUND_TEXT, max_size=3),
    gold=SOUND_TEXT,
    path=TEXT_OR_NONE,
    start=st.none() | st.floats(0, 1e5),
    end=st.none() | st.floats(0, 1e5),
    categories=NAMED,
    extra=st.dictionaries(SOUND_TEXT, PLAIN, max_size=3),
    completion=TEXT_OR_NONE,
    answer=TEXT_OR_NONE,
    option_logprobs=st.none() | st.dictionaries(st.sampled_from("ABCD"), st.floats(-100, 0)),
    scores=st.dictionaries(st.sampled_from(["videorft", "official"]), st.none() | st.floats(0, 1)),
)


@given(st.lists(PREDICTIONS, max_size=4))
def test_predictions_are_read_back(tmp_path, predictions):
    path = tmp_path / "predictions.jsonl"
    text = "".join(prediction.to_line() for prediction in predictions)
    path.write_text(text, encoding="utf-8", newline="")
    assert read_predictions(path) == predictions
    assert "".join(prediction.to_line() for prediction in read_predictions(path)) == text


@given(st.lists(PREDICTIONS, min_size=1, max_size=3), st.data())
def test_a_cut_file_gives_its_whole_lines(tmp_path, predictions, data):
    path = tmp_path / "predictions.jsonl"
    lines = [prediction.to_line().encode() for prediction in predictions]
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    assert read_predictions(path, partial=True) == predictions[:whole]


@given(
    st.lists(st.binary(max_size=40) | JSON_VALUES.map(lambda value: json.dumps(value).encode()), max_size=3),
    st.booleans(),
)
@example([b"[" * 100_000], True)
@example([b"3", b"{}"], False)
@example([b"\xff"], False)
def test_any_other_file_is_refused_or_empty(tmp_path, lines, partial):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    if not lines:
        assert read_predictions(path, partial=partial) == []
        return
    with pytest.raises(UserError, match=r"predictions\.jsonl"):
        read_predictions(path, partial=partial)
