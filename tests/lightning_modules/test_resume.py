"""A resumed FSDP2 run goes on with the record, the weights and the step where its checkpoint was taken."""

import json

import pytest
from safetensors.torch import load_file

from tests.lightning_modules.resumed_runs import GLOBAL_BATCH, LIMITS
from tests.lightning_modules.test_two_ranks import launch


def start(ranks, tiny_folder, mixed_data, folder, runs):
    """Run all of `runs` in one start of so many ranks."""
    plan = folder / f"plan{ranks}.json"
    plan.write_text(json.dumps(runs))
    seconds = 60 + 20 * len(runs)
    launch(ranks, tiny_folder, mixed_data, plan, module="tests.lightning_modules.resumed_runs", seconds=seconds)


def records_by_step(folder):
    """Step -> ids of the records of all ranks."""
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
    return {step: sorted(record for rank in ranks for record in rank[step]) for step in ranks[0]}


def check(whole, resumed, *, first_step, last_step, exact):
    trained = records_by_step(whole)
    assert [int(step) for step in trained] == list(range(1, last_step + 1))
    assert all(len(records) == GLOBAL_BATCH for records in trained.values())
    assert records_by_step(resumed) == {step: ids for step, ids in trained.items() if int(step) >= first_step}
    expected, weights = (load_file(folder / "model" / "model.safetensors") for folder in (whole, resumed))
    assert expected.keys() == weights.keys()
    for name, value in expected.items():
        if exact:
            assert value.equal(weights[name]), name
        else:  # other ranks sum in another order, and Adam makes the most of it where a gradient is near 0
            assert (value - weights[name]).abs().max() < 1e-3, name


def folder_name(ranks, stage, folders, limit, workers):
    return f"{ranks}-{stage}-{'folder' if folders else 'file'}-{limit}-{workers}"


def run_all(tiny_folder, mixed_data, tmp_path, cases, transitions, steps):
    """Whole runs of each case on the ranks that a transition begins with, then the resumed ones; compares them."""
    jobs, pairs = {}, []
    for before, after in transitions:
        for case in cases:
            whole = tmp_path / folder_name(before, *case)
            settings = dict(zip(("stage", "folders", "limit", "workers"), case, strict=True))
            jobs.setdefault((0, before), {})[whole] = {"folder": str(whole), **settings}
            for step in steps:
                resumed = tmp_path / f"{whole.name}-{step}-on-{after}"
                resume = str(whole / f"step={step}.ckpt")
                jobs.setdefault((1, after), {})[resumed] = {"folder": str(resumed), **settings, "resume": resume}
                pairs.append((whole, resumed, step, case, before == after))
    for _, ranks in sorted(jobs):
        start(ranks, tiny_folder, mixed_data, tmp_path, list(jobs[_, ranks].values()))
    for whole, resumed, step, (_, folders, limit, _), exact in pairs:
        (kind,) = {path.is_dir() for path in whole.glob("step=*.ckpt")}
        assert kind == folders
        check(whole, resumed, first_step=step + 1, last_step=LIMITS[limit].get("max_steps", 6), exact=exact)


def start_chain(tiny_folder, mixed_data, tmp_path, limit, steps):
    """Resume at each of `steps` from the checkpoint that the run before it wrote; gives the whole and the last run."""
    settings = {"stage": "sft", "folders": False, "limit": limit, "workers": 0}
    folders = [tmp_path / f"{limit}-{step}" for step in (0, *steps)]
    runs = [{"folder": str(folders[0]), **settings}]
    for step, before, folder in zip(steps, folders, folders[1:], strict=False):
        runs.append({"folder": str(folder), **settings, "resume": str(before / f"step={step}.ckpt")})
    start(1, tiny_folder, mixed_data, tmp_path, runs)
    return folders[0], folders[-1]


@pytest.mark.parametrize("limit", ["max_epochs", "max_steps"])
def test_a_run_resumed_at_the_end_of_an_epoch_can_be_resumed_again(tiny_folder, mixed_data, tmp_path, limit):
    """Step 3 ends the first epoch; the start that goes on there writes the checkpoint of step 4."""
    whole, resumed = start_chain(tiny_folder, mixed_data, tmp_path, limit, [3, 4, 5])
    check(whole, resumed, first_step=6, last_step=6, exact=True)


def test_a_run_with_an_end_in_epochs_goes_on_with_the_next_record(tiny_folder, mixed_data, tmp_path):
    cases = [("sft", False, "max_epochs", 2), ("grpo", True, "max_epochs", 0), ("sft", True, "both", 0)]
    run_all(tiny_folder, mixed_data, tmp_path, cases, [(1, 1)], steps=[2])


@pytest.mark.slow
@pytest.mark.parametrize("transition", [(1, 1), (2, 2), (2, 1), (1, 2)], ids=["1", "2", "2 to 1", "1 to 2"])
def test_every_kind_of_run_goes_on_with_the_next_record(tiny_folder, mixed_data, tmp_path, transition):
    cases = [
        (stage, folders, limit, workers)
        for stage in ("sft", "grpo")
        for folders in (False, True)
        for limit in LIMITS
        for workers in (0, 2)
    ]
    # Within the first epoch, at its end, within the second.
    run_all(tiny_folder, mixed_data, tmp_path, cases, [transition], steps=[2, 3, 4])
