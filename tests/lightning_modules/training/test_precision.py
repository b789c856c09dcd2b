"""bf16-true: weights in half precision, everything else as it was."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_modules.training.optim import OptimizerConfig
from lightning_modules.training.precision import HalfWeights, rounding_note, trainer_options
from tests.lightning_modules.module_runs import data_module, grpo_module, sft_module, trainer


class Seen(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seconds = batch.vision.seconds_per_patch
        self.new = torch.zeros(1)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.advantages = pl_module.last_rollouts.advantages


def test_only_weights_are_rounded(tiny_folder, mixed_data, tmp_path):
    seen = Seen()
    data = data_module(tiny_folder, mixed_data, train_format="prompts")
    module = grpo_module(tiny_folder, dtype="float32", optimizer=OptimizerConfig(learning_rate=1e-6))
    options = {"plugins": [HalfWeights("bf16-true")], "max_steps": 1, "limit_val_batches": 0, "callbacks": [seen]}
    with pytest.warns(UserWarning, match=r"torch.bfloat16, so a step of the learning rate \(1e-06\) .* beyond 0.0005"):
        trainer(tmp_path, **options).fit(module, data)
    for policy in (module.policy, module.reference.policy):
        assert {parameter.dtype for parameter in policy.parameters()} == {torch.bfloat16}
    frequencies = [value for name, value in module.policy.named_buffers() if name.endswith("inv_freq")]
    assert len(frequencies) >= 2
    assert {value.dtype for value in frequencies} == {torch.float32}
    assert seen.seconds.dtype == seen.new.dtype == seen.advantages.dtype == torch.float32


def test_lightnings_own_plugin_is_refused(tiny_folder, mixed_data, tmp_path):
    data = data_module(tiny_folder, mixed_data, train_format="sft")
    with pytest.raises(ValueError, match=r"round rotary frequencies.*plugins=\[HalfWeights\('bf16-true'\)\]"):
        trainer(tmp_path, precision="bf16-true", max_steps=1).fit(sft_module(tiny_folder), data)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_the_options_of_a_trainer_name_the_plugin(tmp_path, precision):
    given = {"precision": precision, "max_steps": 3}
    chosen = trainer(tmp_path, **trainer_options(given))
    assert isinstance(chosen.precision_plugin, HalfWeights)
    assert (chosen.precision, chosen.max_steps) == (precision, 3)
    assert given == {"precision": precision, "max_steps": 3}


@pytest.mark.parametrize("options", [{}, {"precision": None}, {"precision": "bf16-mixed", "plugins": []}])
def test_other_precisions_are_lightnings(options):
    assert trainer_options(options) == options


def test_the_note_says_which_weights_stand_still():
    """bfloat16 has 8 bits: from 2**-11 = 4.88e-4 on its spacing is 2**-18, and half of it, 1.9e-6, is more than 1e-6.
    Below 2**-11 the spacing is 2**-19 and half of it 0.95e-6 is less. 4e-6 / 2**-7 = 5.12e-4 bounds that."""
    rate = 1e-6
    weights = torch.tensor([2.0**-11 * (1 - 2**-8), 2.0**-11, 0.02], dtype=torch.bfloat16)
    moved = weights + torch.full_like(weights, rate)
    assert (moved != weights).tolist() == [True, False, False]
    parameter = torch.nn.Parameter(weights)
    assert "beyond 0.0005 in size" in rounding_note(torch.optim.AdamW([parameter], lr=rate))
    assert rounding_note(torch.optim.AdamW([torch.nn.Parameter(weights.float())], lr=rate)) is None
