"""Memory against the number of completions per backward pass, and the number that `auto` takes."""

import os
from dataclasses import replace

import pytest

from lightning_modules.memory.slices import SlicePeaks, settle_slices
from rewards.errors import UserError
from tests.lightning_modules.memory.test_memory_estimate import SMALL, grpo_module, step_memory
from tests.lightning_modules.module_runs import data_module, trainer
from tests.lightning_modules.module_runs import grpo_module as real_module


def test_an_update_in_slices_needs_no_more_for_a_larger_group(tiny_folder):
    size = replace(SMALL, completion_tokens=64)

    def peak(group_size, completions):
        module = grpo_module(group_size=group_size, micro_batch_completions=completions)
        return step_memory(tiny_folder, module).update(size).total()

    assert peak(32, 2) < 1.02 * peak(8, 2)
    assert peak(8, 2) < peak(8, 4) < peak(8, None) < peak(32, None) / 2


def test_auto_takes_the_largest_slice_that_fits(tiny_folder):
    size = replace(SMALL, completion_tokens=64)
    memory = step_memory(tiny_folder, grpo_module(group_size=32))
    peaks = SlicePeaks(memory, size)
    assert peaks.count == 32 and list(peaks.table()) == [1, 4, 16, None]
    every = [memory.update(size, in_slices_of=n).total() for n in range(1, 9)]
    for n in (1, 2, 5, 8):
        assert peaks.fitting(every[n - 1]) == n
    assert peaks.fitting(peaks.of(None)) is None
    assert peaks.fitting(0) == 1


@pytest.mark.parametrize(("pages", "settled"), [(2**30, None), (1, 1)])
def test_auto_is_settled_before_a_training(tiny_folder, mixed_data, tmp_path, monkeypatch, pages, settled):
    module = real_module(tiny_folder, micro_batch_completions="auto")
    data = data_module(tiny_folder, mixed_data, train_format="prompts")
    with pytest.raises(UserError, match="micro_batch_completions is auto"):
        module.configure_model()
    del module.policy, module.engine
    sizes = {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    settle_slices(module, data, {"accelerator": "cpu"}, ranks=1)
    monkeypatch.undo()
    assert module.micro_batch_completions == settled
    assert not hasattr(module, "policy") and module.reference is None
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, data)
    assert module.update.micro_batch_completions == settled and module.global_step == 1
