"""A training leaves nothing behind from step to step."""

from __future__ import annotations

import pytest

from tests.performance.training_endurance import KINDS, endure


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_memory_descriptors_threads_and_processes_stay_flat(kind, tmp_path):
    _, early, *_, late = endure(kind, tmp_path, 300)
    assert (late.descriptors, late.threads, late.children) == (early.descriptors, early.threads, early.children)
    assert late.trainer_mib < 1.02 * early.trainer_mib + 10
    assert late.children_mib < 1.02 * early.children_mib + 10
