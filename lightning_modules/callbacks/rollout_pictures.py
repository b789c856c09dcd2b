"""Shows rollouts in TensorBoard while they happen: pictures in the image tab, the full text in the text tab."""

from __future__ import annotations

import re
import string
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.video.types import LAYOUT, printable
from lightning_modules.pictures.rollout_picture import rollout_picture
from lightning_modules.rollouts.sample import RolloutSample, latest_rollouts
from lightning_modules.training.typed_lightning import is_fast_dev_run
from rewards.errors import UserError

_ENTITIES = {ord(sign): f"&#{ord(sign)};" for sign in string.punctuation}


class RolloutPictures(Callback):
    """Draws sampled groups for every TensorBoard logger of the trainer, on rank zero.

    The module's attribute `last_rollouts` (a `RolloutSample` or None) is what is drawn. Tags: `train/rollouts/0`,
    `train/rollouts/1`, ... and `val/rollouts/0`, ... TensorBoard keeps 10 pictures per tag unless started
    with `--samples_per_plugin images=1000`.
    """

    def __init__(self, every_n_steps: int = 10, groups_per_step: int = 2) -> None:
        """
        Args:
            every_n_steps: optimizer steps between pictures of training; the first rollout is always drawn.
            groups_per_step: how many groups are drawn each time, and after each validation.
        """
        for name, value in (("every_n_steps", every_n_steps), ("groups_per_step", groups_per_step)):
            if value < 1:
                raise UserError(f"RolloutPictures.{name} is {value}; it must be at least 1.")
        super().__init__()
        self.every_n_steps = every_n_steps
        self.groups_per_step = groups_per_step
        self._period: int | None = None
        self._known: RolloutSample | None = None
        self._validated = 0
        self._checked = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # fast_dev_run replaces all loggers; there is nothing to warn about.
        if self._checked or is_fast_dev_run(trainer):
            return
        self._checked = True
        if not _writers(trainer):
            rank_zero_warn("RolloutPictures draws nothing: the trainer has no TensorBoardLogger.")
        elif not hasattr(pl_module, "last_rollouts"):
            rank_zero_warn(f"RolloutPictures draws nothing: {type(pl_module).__name__} has no `last_rollouts`.")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        sample = latest_rollouts(pl_module)
        # A batch may hold several optimizer steps, so the count can jump over a multiple of the interval.
        period = trainer.global_step // self.every_n_steps
        if sample is None or period == self._period:
            return
        self._period = period
        _draw(trainer, "train/rollouts", sample, 0, self.groups_per_step)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = 0
        # The rollouts that training left behind are not validation's.
        self._known = latest_rollouts(pl_module)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        sample = latest_rollouts(pl_module)
        if sample is None or sample is self._known or trainer.sanity_checking:
            return
        self._known = sample
        _draw(trainer, "val/rollouts", sample, self._validated, self.groups_per_step - self._validated)
        self._validated += len(sample.groups)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._known = None


def rollout_markdown(sample: RolloutSample, row: int) -> str:
    """Group `row` in full, as Markdown in which the model's text stays verbatim."""
    group, breakdown = sample.groups[row], sample.breakdown
    counted = breakdown.contributions
    record = group.prompt.record
    question = "\n".join([record.problem, *record.options])
    parts = [
        f"**problem_id {escaped(record.problem_id)}** ({escaped(record.problem_type)})",
        escaped(question),
        f"**gold** {escaped(record.solution)}",
    ]
    for index, completion in enumerate(group.completions):
        scores = [
            f"{escaped(name)} {float(raw[row, index]):.2f} (counts {float(counted[name][row, index]):.2f})"
            for name, raw in breakdown.components.items()
        ]
        head = [
            f"**#{index + 1} of {len(group.completions)}**",
            f"reward {float(breakdown.total[row, index]):.2f}",
            f"advantage {float(sample.advantages[row, index]):+.2f}",
            f"{len(completion.token_ids)} tokens" + (", truncated" if completion.truncated else ""),
        ]
        parts += ["---", ", ".join(head) + "  \n" + ", ".join(scores), escaped(completion.text)]
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """`text` as Markdown that renders to `text`: all punctuation as HTML entities, line breaks and indents kept.

    Signs that nobody sees, and that would turn what stands beside them, become escapes.
    """
    lines = printable(text, keep=LAYOUT).expandtabs(4).translate(_ENTITIES).split("\n")
    return "  \n".join(re.sub(r"^ +", lambda indent: "&nbsp;" * len(indent[0]), line) for line in lines)


def _writers(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _draw(trainer: pl.Trainer, tag: str, sample: RolloutSample, first: int, room: int) -> None:
    """Draw the sample's groups, at most `room` of them, under numbers from `first` on."""
    writers = _writers(trainer)
    if not writers or not trainer.is_global_zero:
        return
    for row in range(min(len(sample.groups), room)):
        name, picture, text = f"{tag}/{first + row}", rollout_picture(sample, row), rollout_markdown(sample, row)
        for logger in writers:
            logger.experiment.add_image(name, picture, global_step=trainer.global_step)
            logger.experiment.add_text(name, text, global_step=trainer.global_step)
