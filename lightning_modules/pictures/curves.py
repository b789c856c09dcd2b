"""Reads a run's scalars back from TensorBoard's event files and draws the two stages in one figure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_modules.pictures.figures import BLUE, GRAY, GREEN, INK, panel, saved_figure, series_colors
from rewards.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = list[tuple[int, float]]

SFT_LOSS, REWARD, ACCURACY = "train/loss", "train/reward/mean", "val/accuracy"


def read_scalars(log_dir: Path) -> dict[str, Curve]:
    """All scalars in a folder of event files, such as `lightning_logs/version_0`: tag -> [(step, value), ...].

    Raises:
        UserError: there are no event files in `log_dir`.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_dir = Path(log_dir)
    if not any(log_dir.glob("events.out.tfevents.*")):
        nested = sorted({str(path.parent) for path in log_dir.rglob("events.out.tfevents.*")})
        hint = f" There are some in {', '.join(nested[:5])}." if nested else ""
        raise UserError(f"{log_dir} holds no TensorBoard event files.{hint} Give the folder of one run.")
    # 0 keeps every value; the default keeps a random sample.
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def plot_curves(sft_dir: Path, grpo_dir: Path, output: Path, chance: float) -> None:
    """Draws SFT loss, GRPO rewards and validation accuracy side by side.

    Args:
        sft_dir: event files with `train/loss` and `val/accuracy`.
        grpo_dir: event files with `train/reward/mean` and `val/accuracy`; every `train/reward/NAME/mean` is drawn too.
        output: picture to write; its suffix chooses the format (.png, .svg, .pdf).
        chance: accuracy of guessing, drawn as a line, in [0, 1].

    Raises:
        UserError: a tag is missing, a folder has no event files, or `chance` is not in [0, 1].
    """
    if not 0 <= chance <= 1:
        raise UserError(f"chance is {chance}; it must be in [0, 1], such as 0.25 for four options.")
    sft, grpo = read_scalars(sft_dir), read_scalars(grpo_dir)
    loss, sft_accuracy = _curve(sft, SFT_LOSS, sft_dir), _curve(sft, ACCURACY, sft_dir)
    reward, grpo_accuracy = _curve(grpo, REWARD, grpo_dir), _curve(grpo, ACCURACY, grpo_dir)
    with saved_figure(output, width=15, height=4.4) as figure:
        loss_axes, reward_axes, accuracy_axes = figure.subplots(1, 3)
        _draw_loss(loss_axes, loss)
        _draw_rewards(reward_axes, reward, _components(grpo))
        _draw_accuracy(accuracy_axes, sft_accuracy, grpo_accuracy, chance)


def _curve(scalars: dict[str, Curve], tag: str, log_dir: Path) -> Curve:
    if tag not in scalars:
        raise UserError(f'{log_dir} has no scalar "{tag}"; it has {sorted(scalars)}.')
    return scalars[tag]


def _components(scalars: dict[str, Curve]) -> dict[str, Curve]:
    """Reward name -> curve, from the tags `train/reward/NAME/mean`."""
    matches = map(re.compile("train/reward/(.+)/mean").fullmatch, sorted(scalars))
    return {match[1]: scalars[match[0]] for match in matches if match}


def _draw_loss(axes: Axes, loss: Curve) -> None:
    panel(axes, "Supervised fine-tuning", "optimizer step", "loss")
    _draw_smoothed(axes, loss, BLUE, "training loss")
    values = [value for _, value in loss]
    # From thousands of wrong guesses to a learned pattern: a linear axis would show only the fall.
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")


def _draw_rewards(axes: Axes, reward: Curve, components: dict[str, Curve]) -> None:
    panel(axes, "GRPO", "optimizer step", "mean reward")
    for (name, curve), color in zip(components.items(), series_colors(len(components)), strict=True):
        _draw_smoothed(axes, curve, color, name, width=1.6)
    _draw_smoothed(axes, reward, INK, "total", width=2.6)
    axes.legend(frameon=False, loc="best")


def _draw_accuracy(axes: Axes, sft: Curve, grpo: Curve, chance: float) -> None:
    panel(axes, "Validation", "optimizer step", "accuracy")
    after = sft[-1][1]
    axes.plot(*zip(*grpo, strict=True), color=GREEN, linewidth=2.4, marker="o", markersize=5, label="during GRPO")
    axes.axhline(after, color=BLUE, linewidth=1.6, label=f"after SFT: {after:.2f}")
    axes.axhline(chance, color=GRAY, linewidth=1.4, linestyle="--", label=f"chance: {chance:.2f}")
    axes.annotate(f"{grpo[-1][1]:.2f}", grpo[-1], xytext=(0, -16), textcoords="offset points", ha="center", color=GREEN)
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False, loc="lower right")


def _draw_smoothed(axes: Axes, curve: Curve, color: str, label: str, width: float = 2.0) -> None:
    """The values faintly, and their moving average over a twenty-fifth of the run."""
    steps, values = zip(*curve, strict=True)
    window = max(len(values) // 25, 1)
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
    axes.plot(steps, _moving_average(values, window), color=color, linewidth=width, label=label)


def _moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean over the values at most `window // 2` places away from each one."""
    reach = window // 2
    neighbors = (values[max(place - reach, 0) : place + reach + 1] for place in range(len(values)))
    return [sum(near) / len(near) for near in neighbors]
