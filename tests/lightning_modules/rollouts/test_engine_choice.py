"""Which engine draws the completions is a setting of the run."""

from dataclasses import replace

import pytest

import cli
from lightning_modules.policy.policy import Policy
from lightning_modules.rollouts.transformers_engine import TransformersEngine
from lightning_modules.rollouts.types import RolloutEngine
from tests.lightning_modules.module_runs import sft_module


class HastyEngine(TransformersEngine):
    """Stops every completion after so many tokens.

    Args:
        policy: the policy that trains.
        limit: tokens of a completion.
    """

    def __init__(self, policy: Policy, limit: int = 5) -> None:
        super().__init__(policy)
        self.limit = limit

    def generate(self, batch, config, *, group_size, seeds):
        return super().generate(batch, replace(config, max_new_tokens=self.limit), group_size=group_size, seeds=seeds)


def test_the_command_line_builds_the_engine_that_a_run_names(tiny_folder, mixed_data, tmp_path):
    options = {
        "model": "lightning_modules.sft_module.SFTModule",
        "model.init_args.model_name_or_path": tiny_folder,
        "model.init_args.engine": f"{__name__}.HastyEngine",
        "model.init_args.engine.init_args.limit": 2,
        "data": "VideoDataModule",
        "data.init_args.data_root": mixed_data.parent,
        "data.init_args.val_files": f"[{mixed_data}]",
        "data.init_args.eval_frames": "{num_frames: 4, min_pixels: 784, max_pixels: 3136, image_max_pixels: 3136}",
        "data.init_args.num_workers": 0,
        "trainer.default_root_dir": tmp_path,
        "trainer.accelerator": "cpu",
        "trainer.limit_val_batches": 1,
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
    }
    run = cli.lightning_cli(["validate", *(f"--{name}={value}" for name, value in options.items())])
    assert type(run.model.engine) is HastyEngine
    assert run.model.engine.policy is run.model.policy
    assert run.trainer.callback_metrics["val/completion_tokens"] == 2


def test_without_a_name_the_policy_samples_by_itself(tiny_folder):
    module = sft_module(tiny_folder)
    module.configure_model()
    assert type(module.engine) is TransformersEngine


def test_an_engine_without_generate_cannot_be_built(tiny_folder):
    class Silent(RolloutEngine):
        def sync_weights(self):
            pass

    with pytest.raises(TypeError, match="generate"):
        Silent()
