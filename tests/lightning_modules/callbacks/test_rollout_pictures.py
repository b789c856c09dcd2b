"""A real Trainer on the CPU with a module that fabricates rollouts; the events are read back from the disk."""

from html import unescape
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from torch.utils.data import DataLoader

from datamodules.types import EncodedPrompt, VideoRecord
from lightning_modules.callbacks import RolloutPictures
from lightning_modules.callbacks.rollout_pictures import escaped, rollout_markdown
from lightning_modules.rollouts.sample import RolloutSample
from lightning_modules.rollouts.types import Completion, RolloutGroup
from rewards.types import ProblemType, RewardBreakdown


def scored_rollouts(groups: int, name: str) -> RolloutSample:
    record = VideoRecord(
        problem_id=name,
        problem="1 + 1 = ?",
        data_type="text",
        problem_type=ProblemType.NUMERICAL,
        solution="<answer>2</answer>",
        file=Path("records.jsonl"),
        line=1,
    )
    prompt = EncodedPrompt(record=record, input_ids=torch.zeros(2, dtype=torch.int64), vision=None, frames=None)
    completions = tuple(
        Completion(
            token_ids=torch.zeros(3, dtype=torch.int64),
            text=text,
            sampling_logprobs=torch.zeros(3),
            policy_logprobs=torch.zeros(3),
            truncated=False,
        )
        for text in ("<answer>2</answer>", "<answer>3</answer>")
    )
    total = torch.tensor([[1.0, 0.0]]).repeat(groups, 1)
    breakdown = RewardBreakdown(
        total=total, components={"accuracy": total * 2}, contributions={"accuracy": total}, seconds={"accuracy": 0.0}
    )
    group = RolloutGroup(prompt=prompt, completions=completions)
    return RolloutSample(groups=[group] * groups, breakdown=breakdown, advantages=total - 0.5)


class Sampler(pl.LightningModule):
    """Manual optimization with `steps_per_batch` optimizer steps for each rollout of three groups."""

    def __init__(self, steps_per_batch: int = 1, samples_in_validation: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)
        self.last_rollouts: RolloutSample | None = None
        self.steps_per_batch = steps_per_batch
        self.samples_in_validation = samples_in_validation

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.last_rollouts = scored_rollouts(3, "train")
        for _ in range(self.steps_per_batch):
            self.manual_backward(self.layer(torch.ones(1)).sum())
            self.optimizers().step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.samples_in_validation:
            self.last_rollouts = scored_rollouts(1, "validation")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Plain(Sampler):
    """A module that does not sample."""

    def __init__(self) -> None:
        super().__init__()
        del self.last_rollouts

    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return None


def fit(module: pl.LightningModule, tmp_path: Path, callback: RolloutPictures, *, batches: int, logger: Any) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=1,
        callbacks=[callback],
        logger=logger,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    data = DataLoader(torch.zeros(batches, 1))
    trainer.fit(module, data, DataLoader(torch.zeros(4, 1)))


def events(tmp_path: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def tensorboard(tmp_path: Path) -> TensorBoardLogger:
    return TensorBoardLogger(tmp_path, name="run", version="")


def test_training_is_drawn_at_the_interval(tmp_path: Path):
    fit(
        Sampler(),
        tmp_path,
        RolloutPictures(every_n_steps=4, groups_per_step=2),
        batches=9,
        logger=tensorboard(tmp_path),
    )
    read = events(tmp_path)
    # The first rollout (step 1), then the multiples of 4 within 9 steps.
    for tag in ("train/rollouts/0", "train/rollouts/1"):
        assert [event.step for event in read.Images(tag)] == [1, 4, 8]
        assert [event.step for event in read.Tensors(f"{tag}/text_summary")] == [1, 4, 8]
    # Three groups were sampled, two are drawn.
    assert "train/rollouts/2" not in read.Tags()["images"]
    assert read.Images("train/rollouts/0")[0].width == 960


def test_steps_that_jump_over_a_multiple_are_drawn(tmp_path: Path):
    module = Sampler(steps_per_batch=3)
    fit(module, tmp_path, RolloutPictures(every_n_steps=4), batches=4, logger=tensorboard(tmp_path))
    # Steps after each batch: 3, 6, 9, 12; 6 has passed 4, 9 has passed 8, 12 is 3 * 4.
    assert [event.step for event in events(tmp_path).Images("train/rollouts/0")] == [3, 6, 9, 12]


def test_validation_is_drawn_once_with_its_own_rollouts(tmp_path: Path):
    fit(Sampler(), tmp_path, RolloutPictures(groups_per_step=3), batches=2, logger=tensorboard(tmp_path))
    read = events(tmp_path)
    tags = {tag for tag in read.Tags()["images"] if tag.startswith("val/")}
    # One group per batch, four batches, of which the first three groups; the sanity check at step 0 is not drawn.
    assert tags == {f"val/rollouts/{n}" for n in range(3)}
    assert [event.step for event in read.Images("val/rollouts/0")] == [2]
    text = read.Tensors("val/rollouts/0/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "problem_id validation" in text


def test_rollouts_of_training_are_not_shown_as_validation(tmp_path: Path):
    module = Sampler(samples_in_validation=False)
    fit(module, tmp_path, RolloutPictures(), batches=2, logger=tensorboard(tmp_path))
    assert {tag.split("/")[0] for tag in events(tmp_path).Tags()["images"]} == {"train"}


def test_without_tensorboard_it_says_so(tmp_path: Path):
    callback = RolloutPictures()
    with pytest.warns(UserWarning, match="no TensorBoardLogger"):
        fit(Sampler(), tmp_path, callback, batches=1, logger=CSVLogger(tmp_path))


def test_module_without_rollouts_is_named(tmp_path: Path):
    with pytest.warns(UserWarning, match="Plain has no `last_rollouts`"):
        fit(Plain(), tmp_path, RolloutPictures(), batches=1, logger=tensorboard(tmp_path))


@pytest.mark.parametrize("name", ["every_n_steps", "groups_per_step"])
def test_intervals_below_one_are_refused(name: str):
    with pytest.raises(ValueError, match=rf"RolloutPictures\.{name} is 0"):
        RolloutPictures(**{name: 0})


def test_escaped_text_renders_to_itself():
    text = "<think>**a** _b_ `c`\n# d\n1. e\n    indented & <b>\n~~~\n===\n| x | y |\n|---|---|</think>"
    html = markdown_to_safe_html(escaped(text))
    # One paragraph, nothing but line breaks in it.
    body = html.split("<p>")[1].split("</p>")[0]
    assert html.count("<p>") == 1
    assert unescape(body.replace("<br>", "").replace("<br />", "")).replace("\xa0", " ") == text


def test_signs_that_nobody_sees_are_shown():
    html = markdown_to_safe_html(escaped("a\u202egnp.exe \x1b[2J\nb\tc"))
    assert unescape(html).endswith("a\\u202egnp.exe \\x1b[2J<br>\nb   c</p>")


def test_indented_paragraph_is_no_code_block():
    # Four spaces after an empty line would start a block of code, which TensorBoard does not wrap.
    html = markdown_to_safe_html(escaped("a\n\n    b"))
    assert "<code>" not in html
    assert unescape(html).endswith("<p>\xa0\xa0\xa0\xa0b</p>")


def test_markdown_holds_every_completion_with_raw_and_counted_scores():
    text = rollout_markdown(scored_rollouts(1, "q1"), 0)
    html = unescape(markdown_to_safe_html(text))
    assert "<answer>2</answer>" in html
    assert "<answer>3</answer>" in html
    # The raw score is twice the reward here.
    assert "reward 1.00, advantage +0.50, 3 tokens" in html
    assert "accuracy 2.00 (counts 1.00)" in html


def test_sample_refuses_scores_of_other_groups():
    sample = scored_rollouts(2, "a")
    with pytest.raises(AssertionError, match=r"\[B, G\]"):
        RolloutSample(groups=sample.groups[:1], breakdown=sample.breakdown, advantages=sample.advantages)
