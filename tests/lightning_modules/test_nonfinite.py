"""Losses, gradients and rewards that are not finite, in real runs: nothing of them may reach the weights."""

import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_modules.callbacks import HFExport
from lightning_modules.policy.policy import Policy
from lightning_modules.rollouts.types import NonFiniteLogitsError
from lightning_modules.training.nonfinite import GuardConfig, NonFiniteError
from lightning_modules.training.stored_batch import StoredBatch
from tests.lightning_modules.module_runs import LetterReward, data_module, grpo_module, scalars, sft_module, trainer
from tests.lightning_modules.poison import PoisonedReward, poisoned_targets

SKIP = GuardConfig(on_nonfinite="skip")
POISONED = "9"  # in file order and batches of 4: step 3 of an epoch of 3


def poisoned(records):
    return float("nan") if any(record.problem_id == POISONED for record in records) else 1.0


@pytest.fixture
def poisoned_loss(monkeypatch):
    """The log-probabilities of one record are not numbers, in fine-tuning and in GRPO."""
    pack, logprobs = Policy.pack, Policy.logprobs
    packed = []

    def remembering_pack(self, batch, completions, **options):
        packed.append([prompt.record for prompt in batch.prompts])
        return pack(self, batch, completions, **options)

    def poisoned_logprobs(self, batch, **options):
        statistics = logprobs(self, batch, **options)
        return replace(statistics, logprobs=statistics.logprobs * poisoned(packed[-1]))

    monkeypatch.setattr(Policy, "target_statistics", poisoned_targets(POISONED))
    monkeypatch.setattr(Policy, "pack", remembering_pack)
    monkeypatch.setattr(Policy, "logprobs", poisoned_logprobs)


@pytest.fixture
def run(tiny_folder, mixed_data, tmp_path):
    """A run of either stage in file order, with a checkpoint after every step and an export at its end."""

    def runner(stage, *, steps=4, batch_size=4, accumulate=1, ckpt_path=None, prepare=None, **options):
        make = sft_module if stage == "sft" else grpo_module
        module = make(tiny_folder, **options)
        module.configure_model()
        if prepare is not None:
            prepare(module)
        data = data_module(
            tiny_folder,
            mixed_data,
            train_format="sft" if stage == "sft" else "prompts",
            shuffle=False,
            batch_size=batch_size,
        )
        saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        fitting = trainer(
            tmp_path,
            max_steps=steps,
            limit_val_batches=0,
            accumulate_grad_batches=accumulate,
            callbacks=[saving, HFExport(str(tmp_path / "model"))],
        )
        return module, lambda: fitting.fit(module, data, ckpt_path=ckpt_path)

    return runner


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def assert_equal_weights(actual, expected):
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def stopped(fit):
    with pytest.raises(NonFiniteError) as caught:
        fit()
    return str(caught.value)


STAGES = pytest.mark.parametrize("stage", ["sft", "grpo"])


@STAGES
@pytest.mark.usefixtures("poisoned_loss")
def test_a_loss_that_is_no_number_ends_the_run_before_its_step(run, tmp_path, stage):
    module, fit = run(stage)
    said = stopped(fit)
    file = tmp_path / "nonfinite" / "step000003-rank0.pt"
    assert said.startswith("Step 3 is not finite: the gradient norm is nan.\n")
    assert "the weights are those after step 2" in said
    assert "rank 0 of 1: the loss is nan" in said
    assert "mixed.jsonl:10 (problem_id 9)" in said
    assert f"python cli.py check batch {file}" in said
    assert "The weights were not finite" not in said
    assert module.trainer.global_step == 2
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt"]
    assert_equal_weights(module.state_dict(), weights(tmp_path / "step=2.ckpt"))
    assert not (tmp_path / "model").exists()


@STAGES
@pytest.mark.usefixtures("poisoned_loss")
def test_such_a_step_can_be_skipped(run, tmp_path, stage):
    _, fit = run(stage, guard=SKIP)
    with pytest.warns(UserWarning, match="Step 3 is not finite(.|\n)*Skipped, number 1 of at most 10"):
        fit()
    checkpoints = [torch.load(tmp_path / f"step={step}.ckpt", weights_only=True) for step in (2, 3, 4)]
    assert_equal_weights(checkpoints[1]["state_dict"], checkpoints[0]["state_dict"])
    before, after = (checkpoint["state_dict"] for checkpoint in checkpoints[1:])
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert all(value.isfinite().all() for value in after.values())
    for before, after in zip(*(c["optimizer_states"][0]["state"].values() for c in checkpoints[:2]), strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert scalars(tmp_path)["train/skipped_steps"] == [0.0, 0.0, 1.0, 1.0]
    assert (tmp_path / "nonfinite" / "step000003-rank0.pt").is_file()
    assert (tmp_path / "model").is_dir()


@STAGES
def test_a_poisoned_weight_ends_the_run_in_either_mode(run, tmp_path, stage):
    def poison(module):
        with torch.no_grad():
            module.policy.model.model.language_model.layers[0].mlp.down_proj.weight[0, 0] = math.nan

    for guard in (GuardConfig(), SKIP):
        said = stopped(run(stage, prepare=poison, guard=guard)[1])
        assert said.startswith("Step 1 is not finite")
        assert "The weights were not finite before this step: 1 parameters, model.model.language_model.layers.0" in said


def test_answers_of_a_poisoned_model_are_an_error(tiny_folder, mixed_data, tmp_path):
    module = sft_module(tiny_folder)
    module.configure_model()
    with torch.no_grad():
        module.policy.model.model.language_model.norm.weight[0] = math.inf
    data = data_module(tiny_folder, mixed_data, train_format="sft")
    with pytest.raises(NonFiniteLogitsError, match=r"not finite for \S*mixed.jsonl:1 \(problem_id 0\), .*, so nothing"):
        trainer(tmp_path).validate(module, datamodule=data, verbose=False)


@STAGES
def test_an_infinite_gradient_of_a_finite_loss_is_noticed(run, tmp_path, stage):
    def explode(module):
        weight = module.policy.model.model.language_model.layers[0].mlp.down_proj.weight
        weight.register_hook(lambda gradient: gradient * math.inf if module.global_step == 1 else None)

    said = stopped(run(stage, prepare=explode, steps=2)[1])
    assert said.startswith("Step 2 is not finite: the gradient norm is inf.")
    assert "rank 0 of 1: its own loss is finite" in said
    assert (tmp_path / "nonfinite" / "step000002-rank0.pt").is_file()


def test_the_limit_of_skipped_steps_holds_over_a_resume(run, tmp_path, monkeypatch):
    rewards = [PoisonedReward(POISONED)]
    guard = GuardConfig(on_nonfinite="skip", max_skipped_steps=1)
    run("grpo", rewards=rewards, guard=guard)[1]()
    said = stopped(run("grpo", steps=9, rewards=rewards, guard=guard, ckpt_path=tmp_path / "step=4.ckpt")[1])
    assert said.startswith("Step 6 is not finite.")
    assert "1 steps were skipped before; model.guard.max_skipped_steps allows no more" in said


@pytest.mark.parametrize("inner_epochs", [1, 2])
def test_a_reward_that_float32_cannot_hold_stops_or_is_skipped(run, tmp_path, inner_epochs):
    options = {"rewards": [PoisonedReward(POISONED)], "inner_epochs": inner_epochs, "steps": 4 * inner_epochs}
    module, fit = run("grpo", **options)
    said = stopped(fit)
    assert f"Step {2 * inner_epochs + 1} is not finite." in said
    assert "Reward 'letter' on problem_id 9 returned 1e+300 for completion 0" in said
    assert_equal_weights(module.state_dict(), weights(tmp_path / f"step={2 * inner_epochs}.ckpt"))

    module, fit = run("grpo", guard=SKIP, **options)
    fit()
    assert module.trainer.global_step == 4 * inner_epochs and module.guard.skipped == 1
    assert all(parameter.isfinite().all() for parameter in module.policy.parameters())


@pytest.mark.usefixtures("poisoned_loss")
def test_all_micro_batches_of_the_step_are_stored(run, tmp_path):
    said = stopped(run("sft", batch_size=2, accumulate=2)[1])
    assert said.startswith("Step 3")
    stored = StoredBatch.load(tmp_path / "nonfinite" / "step000003-rank0.pt")
    assert [[record.problem_id for record in batch.records] for batch in stored.batches] == [["8", "9"], ["10", "11"]]


def test_a_stored_rollout_is_what_it_was(run, tmp_path):
    module, fit = run("grpo", rewards=[PoisonedReward(POISONED)])
    stopped(fit)
    stored = StoredBatch.load(tmp_path / "nonfinite" / "step000003-rank0.pt")
    assert (stored.step, stored.rank, stored.world_size, stored.config) == (3, 0, 1, None)
    assert stored.advantages is None and len(stored.groups) == len(module.guard._groups) == 4
    for actual, expected in zip(stored.groups, module.guard._groups, strict=True):
        assert actual.prompt.record == expected.prompt.record
        assert torch.equal(actual.prompt.input_ids, expected.prompt.input_ids)
        for name in ("patches", "grid_thw", "is_video", "seconds_per_patch"):
            if expected.prompt.vision is None:
                assert actual.prompt.vision is None and actual.prompt.frames is None
            else:
                assert torch.equal(getattr(actual.prompt.vision, name), getattr(expected.prompt.vision, name))
        for one, other in zip(actual.completions, expected.completions, strict=True):
            assert (one.text, one.truncated) == (other.text, other.truncated)
            assert torch.equal(one.token_ids, other.token_ids)
            assert torch.equal(one.policy_logprobs, other.policy_logprobs)


def test_other_exceptions_name_rank_step_and_records(run):
    class Failing(LetterReward):
        def score(self, group, raw):
            if group.record_id == POISONED:
                raise KeyError("no such thing")
            return super().score(group, raw)

    with pytest.raises(RuntimeError, match="KeyError") as caught:
        run("grpo", rewards=[Failing()])[1]()
    (note,) = caught.value.__notes__
    assert note.startswith("On rank 0 of 1, after 2 optimizer steps, in train; records: ")
    assert "mixed.jsonl:10 (problem_id 9)" in note and "problem_id 7" not in note


@pytest.mark.parametrize(
    ("options", "message"),
    [({"on_nonfinite": "ignore"}, "'ignore'; allowed are 'stop', 'skip'"), ({"max_skipped_steps": 0}, "must be >= 1")],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GuardConfig(**options)
