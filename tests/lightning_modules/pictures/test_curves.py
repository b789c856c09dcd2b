"""Scalars are read back from event files that a TensorBoardLogger wrote."""

from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from lightning_modules.pictures.curves import _moving_average, plot_curves, read_scalars


def write_run(folder: Path, scalars: dict[str, list[tuple[int, float]]]) -> Path:
    logger = TensorBoardLogger(folder, name="", version="")
    for tag, curve in scalars.items():
        for step, value in curve:
            logger.log_metrics({tag: value}, step=step)
    logger.finalize("success")
    return Path(logger.log_dir)


def sft_scalars() -> dict[str, list[tuple[int, float]]]:
    return {
        "train/loss": [(step, 6.0 * 0.98**step + 0.01) for step in range(300)],
        "val/accuracy": [(150, 0.4), (300, 0.62)],
    }


def grpo_scalars() -> dict[str, list[tuple[int, float]]]:
    return {
        "train/reward/mean": [(step, 1.0 + step / 120) for step in range(60)],
        "train/reward/accuracy/mean": [(step, 0.5 + step / 120) for step in range(60)],
        "train/reward/format/mean": [(step, 1.0) for step in range(60)],
        "val/accuracy": [(0, 0.61), (20, 0.8), (40, 0.93), (60, 0.99)],
    }


def test_every_value_is_read_back(tmp_path: Path):
    # More than the 10,000 that the reader keeps by default.
    curve = [(step, step / 4) for step in range(10_050)]
    assert read_scalars(write_run(tmp_path, {"train/loss": curve}))["train/loss"] == curve


def test_folder_without_events_names_those_with_events(tmp_path: Path):
    write_run(tmp_path / "version_0", {"train/loss": [(0, 1.0)]})
    with pytest.raises(ValueError, match=r"holds no TensorBoard event files.*version_0"):
        read_scalars(tmp_path)


def test_figure_is_written_whole(tmp_path: Path):
    output = tmp_path / "plots" / "curves.png"
    plot_curves(write_run(tmp_path / "sft", sft_scalars()), write_run(tmp_path / "grpo", grpo_scalars()), output, 0.25)
    with Image.open(output) as picture:
        assert picture.width > 2 * picture.height
    assert [path.name for path in output.parent.iterdir()] == ["curves.png"]


@pytest.mark.parametrize(
    ("stage", "tag"),
    [("sft", "train/loss"), ("sft", "val/accuracy"), ("grpo", "train/reward/mean"), ("grpo", "val/accuracy")],
)
def test_missing_tag_is_named_with_those_present(tmp_path: Path, stage: str, tag: str):
    scalars = {"sft": sft_scalars(), "grpo": grpo_scalars()}
    rest = next(name for name in scalars[stage] if name != tag)
    scalars[stage] = {rest: scalars[stage][rest][:3]}
    folders = {name: write_run(tmp_path / name, scalars[name]) for name in scalars}
    with pytest.raises(ValueError, match=rf'{stage} has no scalar "{tag}"; it has .*{rest}'):
        plot_curves(folders["sft"], folders["grpo"], tmp_path / "curves.png", 0.25)
    assert not (tmp_path / "curves.png").exists()


def test_chance_outside_zero_to_one_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="chance is 25"):
        plot_curves(tmp_path, tmp_path, tmp_path / "curves.png", 25)


def test_smoothing_is_centered():
    # Window 3 reaches one place to each side: (0+3)/2, (0+3+6)/3, (3+6+0)/3, (6+0)/2; window 1 changes nothing.
    assert _moving_average([0.0, 3.0, 6.0, 0.0], 3) == [1.5, 3.0, 3.0, 3.0]
    assert _moving_average([0.0, 3.0], 1) == [0.0, 3.0]
