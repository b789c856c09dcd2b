import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.collate import IGNORED_LABEL, SFTCollator
from lightning_modules.callbacks import RolloutPictures
from lightning_modules.sft_module import LOSS_SCALE
from tests.lightning_modules.module_runs import data_module, scalars, sft_module, trainer
from tests.lightning_modules.policy.test_shared_prefix import relative_error
from tests.lightning_modules.sft_gradients import assert_same_steps, expected_steps, lightning_steps


def test_training_learns_and_logs(tiny_folder, mixed_data, tmp_path):
    module = sft_module(tiny_folder)
    data = data_module(tiny_folder, mixed_data, train_format="sft")
    trainer(tmp_path, max_steps=12, gradient_clip_val=1.0).fit(module, data)
    logged = scalars(tmp_path)
    losses = logged["train/loss"]
    assert losses[0] == pytest.approx(math.log(384), abs=1.5)  # a random model spreads over 384 tokens
    assert losses[-1] < losses[0] - 1
    assert logged["train/perplexity"][0] == pytest.approx(math.exp(losses[0]), rel=1e-4)
    for tag in ("train/token_accuracy", "train/lr", "train/grad_norm", "train/tokens_per_second", "seconds/update"):
        assert len(logged[tag]) == 12, tag
    assert {"val/accuracy", "val/format", "val/completion_tokens", "val/truncated"} <= logged.keys()


def test_validation_answers_are_drawn_and_training_draws_none(tiny_folder, mixed_data, tmp_path):
    data = data_module(tiny_folder, mixed_data, train_format="sft")
    callbacks = [RolloutPictures(every_n_steps=1, groups_per_step=2)]
    trainer(tmp_path, max_epochs=2, callbacks=callbacks).fit(sft_module(tiny_folder), data)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert set(events.Tags()["images"]) == {"val/rollouts/0", "val/rollouts/1"}


def test_the_loss_is_that_of_the_labeled_tokens(tiny_folder, mixed_data, tmp_path):
    """Against the full log-softmax of the stock forward, text-only records, where positions are undisputed."""
    module = sft_module(tiny_folder, dtype="float64")
    module.configure_model()
    data = data_module(tiny_folder, mixed_data, train_format="sft")
    data.setup("fit")
    dataset = data._dataset("fit", data.train_frames, with_targets=True)
    samples = [sample for sample in map(dataset.__getitem__, range(12)) if sample.prompt.vision is None]
    batch = module.policy.with_positions(SFTCollator(pad_token_id=data.tokenizer.pad_token_id)(samples))
    loss = module.training_step(batch, 0) / LOSS_SCALE / (batch.labels[:, 1:] != IGNORED_LABEL).sum()

    model = module.policy.model
    logits = model(batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    labels = batch.labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL)
    assert len(samples) >= 2
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)


def test_one_row_of_all_records_has_the_gradients_of_padded_rows(tiny_folder, mixed_data):
    module = sft_module(tiny_folder, dtype="float64")
    module.configure_model()
    policy, data = module.policy, data_module(tiny_folder, mixed_data, train_format="sft")
    data.setup("fit")
    dataset = data._dataset("fit", data.train_frames, with_targets=True)
    samples = [dataset[index] for index in range(6)]
    assert len({len(sample.prompt.input_ids) for sample in samples}) > 1
    batch = policy.with_positions(SFTCollator(pad_token_id=data.tokenizer.pad_token_id)(samples))
    weights = torch.randn(int((batch.labels != IGNORED_LABEL).sum()), dtype=torch.float64)

    def gradients(logprobs):
        policy.zero_grad()
        (logprobs * weights).sum().backward()
        return {name: value.grad for name, value in policy.named_parameters()}

    hidden = policy._hidden(batch.input_ids, batch.vision, batch.position_ids)
    every = (hidden @ policy.model.get_output_embeddings().weight.T)[:, :-1].log_softmax(dim=-1)
    labels = batch.labels[:, 1:]
    padded = every.gather(2, labels.clamp(min=0)[..., None]).squeeze(2)[labels != IGNORED_LABEL]
    packed = policy.target_statistics(batch).logprobs
    torch.testing.assert_close(packed, padded, rtol=1e-9, atol=1e-12)
    expected, actual = gradients(padded), gradients(packed)
    for name, gradient in expected.items():
        tolerance = 1e-7 if "visual" in name else 1e-9
        assert relative_error(actual[name], gradient) <= tolerance, name


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 2), (2, 4), (1, 8)])
def test_every_token_of_a_step_weighs_the_same_in_whatever_micro_batch(
    tiny_folder, mixed_data, tmp_path, batch_size, accumulate
):
    """Twelve records: a step of 8 and, at the end of the epoch, one of 4, which is half a window."""
    expected = expected_steps(tiny_folder, mixed_data, [range(8), range(8, 12)])
    options = {"batch_size": batch_size, "accumulate": accumulate}
    actual = lightning_steps(tiny_folder, mixed_data, tmp_path, **options)
    assert_same_steps(actual, expected)


def test_the_logged_values_are_those_of_the_step(tiny_folder, mixed_data, tmp_path):
    """The loss and gradient norm of 4 x 1 are those of 4, and each step is logged once."""
    for name, options in {"whole": (4, 1), "split": (1, 4)}.items():
        data = data_module(tiny_folder, mixed_data, train_format="sft", batch_size=options[0], shuffle=False)
        run = trainer(tmp_path / name, max_epochs=2, limit_val_batches=0, accumulate_grad_batches=options[1])
        run.fit(sft_module(tiny_folder, dtype="float64"), data)
    whole, split = scalars(tmp_path / "whole"), scalars(tmp_path / "split")
    for tag in ("train/loss", "train/perplexity", "train/token_accuracy", "train/grad_norm"):
        assert len(whole[tag]) == 6
        assert split[tag] == pytest.approx(whole[tag], rel=1e-4), tag
    assert split["train/perplexity"][0] == pytest.approx(math.exp(split["train/loss"][0]), rel=1e-5)


def test_prompts_to_train_on_are_refused(tiny_folder, mixed_data, tmp_path):
    data = data_module(tiny_folder, mixed_data, train_format="prompts")
    with pytest.raises(ValueError, match="train_format: sft"):
        trainer(tmp_path, max_steps=1).fit(sft_module(tiny_folder), data)


def test_validation_scores_every_record_once(tiny_folder, mixed_data, tmp_path):
    module = sft_module(tiny_folder)
    data = data_module(tiny_folder, mixed_data, train_format="sft")
    rows = trainer(tmp_path).predict(module, datamodule=_predicting(data))
    answered = [row["problem_id"] for batch in rows for row in batch]
    assert len(answered) == 12 and len(set(answered)) == 12
    (metrics,) = trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    assert metrics["val/completion_tokens"] <= 8
    assert {name for name in metrics if name.startswith("val/accuracy/")} == {
        f"val/accuracy/{kind}" for kind in ("multiple choice", "numerical", "OCR", "free-form", "regression")
    }


def _predicting(data):
    data.files["predict"] = data.files["validate"]
    return data
