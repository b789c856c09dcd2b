"""The summary of a small set of stored rollouts, worked out by hand."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
from PIL import Image

import cli
from lightning_modules.rollout_log import summary as module
from lightning_modules.rollout_log.plot import plot_rollouts
from lightning_modules.rollout_log.stored_rows import as_table
from lightning_modules.rollout_log.summary import summarize_rollouts


def rows(step, group, kind, completions):
    """One group; completions are (tokens, truncated, {reward: raw score}), each reward with weight 1."""
    return [
        {
            "step": step, "rank": 0, "group": f"{step}-0-{group}", "problem_id": "1", "problem_type": kind,
            "data_type": "video", "completion_index": index, "completion": "text", "completion_tokens": tokens,
            "truncated": truncated, "reward": sum(raw.values()), "advantage": 0.0,
            **{f"reward/{name}": score for name, score in raw.items()},
        }
        for index, (tokens, truncated, raw) in enumerate(completions)
    ]  # fmt: skip


def scored(accuracy, format):
    return {"accuracy": accuracy, "format": format}


def write(folder: Path, name: str, groups, row_group_size=3):
    folder.mkdir(exist_ok=True)
    pq.write_table(as_table([row for group in groups for row in group]), folder / name, row_group_size=row_group_size)


@pytest.fixture
def folder(tmp_path) -> Path:
    #              accuracy  format  reward
    # choice 1     1, 0      1, 1    2, 1
    # choice 2     1, 1      0, 0    1, 1   no variance
    # numerical    0, 0      1, 1    1, 1   no variance
    first = [
        rows(1, 0, "multiple choice", [(10, False, scored(1.0, 1.0)), (20, False, scored(0.0, 1.0))]),
        rows(1, 1, "multiple choice", [(30, False, scored(1.0, 0.0)), (40, True, scored(1.0, 0.0))]),
    ]
    second = [rows(2, 0, "numerical", [(50, False, scored(0.0, 1.0)), (130, True, scored(0.0, 1.0))])]
    write(tmp_path / "rollouts", "rollouts-step000001-000001-rank0.parquet", first)
    write(tmp_path / "rollouts", "rollouts-step000002-000002-rank0.parquet", second)
    (tmp_path / "rollouts" / "rollouts-step000002-000009-rank0.parquet.superseded1").write_bytes(b"out of sight")
    return tmp_path / "rollouts"


def test_values_by_hand(folder):
    summary = summarize_rollouts(folder)
    assert (summary.files, summary.score_names) == (2, ("total", "accuracy", "format"))

    choice, numerical, total = summary.types["multiple choice"], summary.types["numerical"], summary.total
    assert (choice.count, choice.groups, choice.flat, choice.truncated) == (4, 2, 1 / 2, 1 / 4)
    assert choice.tokens == (10 + 20 + 30 + 40) / 4
    assert choice.scores == ((2 + 1 + 1 + 1) / 4, 3 / 4, 2 / 4)
    assert (numerical.count, numerical.groups, numerical.flat, numerical.truncated) == (2, 1, 1, 1 / 2)
    assert numerical.scores == (1, 0, 1)
    assert (total.count, total.groups, total.flat) == (6, 3, pytest.approx(2 / 3))
    assert total.scores == pytest.approx((7 / 6, 3 / 6, 4 / 6))

    assert [(step, means.scores) for step, means in summary.steps] == [(1, (5 / 4, 3 / 4, 2 / 4)), (2, (1, 0, 1))]

    # At most 12 bins of a width of 1, 2 or 5 times a power of ten: 130 / 12 = 10.8, so 20.
    bins = [(low, high, means.count, means.scores[0]) for low, high, means in summary.lengths]
    assert bins == [(1, 20, 2, 1.5), (21, 40, 2, 1.0), (41, 60, 1, 1.0), (121, 140, 1, 1.0)]

    # Right answers in a wrong format: 2 of 6. Wrong answers in the right format: 3 of 6.
    np.testing.assert_allclose(summary.disagreement, [[0, 2 / 6], [3 / 6, 0]])
    # Covariance E[af] - E[a]E[f] = 1/6 - 1/2 * 2/3 = -1/6; deviations 1/2 and sqrt(2/3 * 1/3) = sqrt(2)/3.
    correlation = (-1 / 6) / (1 / 2 * math.sqrt(2) / 3)
    np.testing.assert_allclose(summary.correlation, [[1, correlation], [correlation, 1]])


def test_good_and_bad_are_the_halves_of_the_range_that_a_reward_took(tmp_path):
    # similarity takes 0.2 to 0.4, so its middle is 0.3: 0.2 and 0.25 are bad, 0.4 is good.
    raw = [(1.0, 0.25), (0.0, 0.2), (0.0, 0.4), (1.0, 0.4)]
    completions = [(5, False, {"accuracy": accuracy, "similarity": score}) for accuracy, score in raw]
    write(tmp_path / "r", "a.parquet", [rows(1, 0, "OCR", completions)])
    np.testing.assert_allclose(summarize_rollouts(tmp_path / "r").disagreement, [[0, 1 / 4], [1 / 4, 0]])


def test_a_reward_that_never_changes_has_no_opinion(tmp_path):
    completions = [(5, False, scored(accuracy, 0.1)) for accuracy in (1.0, 0.0, 1.0)]
    write(tmp_path / "r", "a.parquet", [rows(1, 0, "OCR", completions)])
    summary = summarize_rollouts(tmp_path / "r")
    nan = math.nan
    np.testing.assert_array_equal(summary.disagreement, [[0, nan], [nan, nan]])
    np.testing.assert_allclose(summary.correlation, [[1, nan], [nan, nan]])
    matrix = summary.render().splitlines()[-2:]
    assert [line.split() for line in matrix] == [["accuracy", "-"], ["format", "-"]]


def test_files_of_a_run_whose_rewards_were_changed_are_read_together(tmp_path):
    write(
        tmp_path / "r", "a.parquet", [rows(1, 0, "OCR", [(5, False, {"accuracy": 1.0}), (5, False, {"accuracy": 0.0})])]
    )
    changed = [(5, False, {"accuracy": 1.0, "length": 0.0}), (5, False, {"accuracy": 0.0, "length": 1.0})]
    write(tmp_path / "r", "b.parquet", [rows(2, 0, "OCR", changed)])
    summary = summarize_rollouts(tmp_path / "r")
    # length was asked about two completions only, and is 1 minus accuracy there.
    assert dict(zip(summary.score_names, summary.total.scores, strict=True)) == {
        "total": (1 + 0 + 1 + 1) / 4, "accuracy": 1 / 2, "length": 1 / 2,
    }  # fmt: skip
    np.testing.assert_allclose(summary.correlation, [[1, -1], [-1, 1]])
    np.testing.assert_allclose(summary.disagreement, [[0, 1 / 2], [1 / 2, 0]])


def test_long_runs_are_averaged_over_neighboring_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CURVE_POINTS", 2)
    groups = [rows(step, 0, "OCR", [(5, False, {"accuracy": float(step)})] * 2) for step in (1, 2, 5, 6, 9)]
    write(tmp_path / "r", "a.parquet", groups)
    steps = summarize_rollouts(tmp_path / "r").steps
    # Three steps a point: 1, 2, 5 and 6, 9.
    assert [(step, means.count, means.scores[0]) for step, means in steps] == [(8 / 3, 6, 8 / 3), (7.5, 4, 7.5)]


def test_the_text_shows_the_numbers(folder):
    text = summarize_rollouts(folder).render()
    assert text.startswith("6 completions in 3 groups, steps 1 to 2, 2 files\n")
    shown = [line.split() for line in text.splitlines()]
    assert ["multiple", "choice", "4", "2", "50.0%", "25.0%", "25.0", "1.250", "0.750", "0.500"] in shown
    assert ["all", "6", "3", "66.7%", "33.3%", "46.7", "1.167", "0.500", "0.667"] in shown
    assert ["121-140", "1", "100.0%", "1.000", "0.000", "1.000"] in shown
    assert ["accuracy", "33.3%"] in shown
    assert ["format", "-0.71"] in shown


def test_the_picture_draws_what_was_found(folder, tmp_path):
    summary = summarize_rollouts(folder)
    plot_rollouts(summary, tmp_path / "a.png")
    plot_rollouts(summary, tmp_path / "a.svg")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    # The colors of accuracy and format are there, that of a third reward is not.
    present = [(picture == color).all(axis=1).any() for color in ((26, 127, 69), (199, 119, 0), (47, 95, 179))]
    assert present == [True, True, False]
    assert sorted(path.name for path in tmp_path.glob("*a.*")) == ["a.png", "a.svg"]


def test_names_steer_neither_the_terminal_nor_the_picture(tmp_path):
    """Two dollar signs would begin a formula, and this one cannot be parsed."""
    write(
        tmp_path,
        "rollouts.parquet",
        [rows(1, 0, "\x1b[2J\u202e<b>", [(10, False, {"$\\frac$": 1.0, "b\x1b[2J": 0.5})])],
    )
    summary = summarize_rollouts(tmp_path)
    assert all(line.isprintable() for line in summary.render().splitlines())
    assert r"\x1b[2J\u202e<b>" in summary.render()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a sign without a glyph is one
        plot_rollouts(summary, tmp_path / "summary.png")


def test_the_command_prints_and_draws(folder, capsys):
    assert cli.main(["check", "rewards", "--rollouts", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(summarize_rollouts(folder).render())
    assert Image.open(folder / "summary.png").width > 1000


def test_the_command_takes_one_source_only(folder, capsys):
    assert cli.main(["check", "rewards", "--rollouts", str(folder), "--completions", "rows.jsonl"]) == 2
    assert "either --config with the YAML files of a run, or --completions, or --rollouts" in capsys.readouterr().err


def test_what_cannot_be_summed_up_says_why(tmp_path):
    with pytest.raises(ValueError, match="absent is not a folder"):
        summarize_rollouts(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no Parquet files"):
        summarize_rollouts(tmp_path)
    path = tmp_path / "a.parquet"
    pq.write_table(as_table([]), path)
    with pytest.raises(ValueError, match="hold no rows"):
        summarize_rollouts(tmp_path)
    pq.write_table(pyarrow.table({"step": [1], "group": ["a"]}), path)
    with pytest.raises(ValueError, match=r"a\.parquet is not a RolloutStore's: it has no column problem_type"):
        summarize_rollouts(tmp_path)
    path.write_bytes(b"PAR0")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet"):
        summarize_rollouts(tmp_path)
