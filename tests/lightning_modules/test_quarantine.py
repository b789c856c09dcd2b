"""Trainings with damaged files: what takes their place, what is counted, and that ranks and resumes agree about it."""

import json
import shutil

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_modules.callbacks import ContinuedRun
from tests.lightning_modules.module_runs import data_module, grpo_module, scalars, trainer
from tests.lightning_modules.test_resume import check, records_by_step, start
from tests.lightning_modules.test_two_ranks import launch

SUBSTITUTES = {1: 7, 4: 11, 9: 6}
"""Damaged record -> the one in its place. Another choice would let a resumed run go on with other records.

In file order and global batches of 4, two ranks take the records in turn: 1 is rank 1's in step 1 of an epoch of 3, 4
is rank 0's in step 2, 9 is rank 1's in step 3. Records 1, 4, 7 and 11 are images, 6 and 9 are videos.
"""
EXPECTED = [sorted(str(SUBSTITUTES.get(record, record)) for record in range(at, at + 4)) for at in (0, 4, 8)]
"""Ids that the steps of an epoch train on."""


@pytest.fixture(scope="module")
def damaged_data(mixed_data, tmp_path_factory):
    """The mixed data with three files of which only the beginning is there."""
    root = tmp_path_factory.mktemp("damaged") / "data"
    shutil.copytree(mixed_data.parent, root)
    rows = [json.loads(line) for line in mixed_data.read_text().splitlines()]
    for number in SUBSTITUTES:
        path = root / rows[number]["path"]
        path.write_bytes(path.read_bytes()[:100])
    return root / mixed_data.name


def listed(folder):
    """Numbers of the records in a run's list."""
    rows = [json.loads(line) for line in (folder / "bad_media.jsonl").read_text().splitlines()]
    return sorted(row["line"] - 1 for row in rows)


def counted(folder):
    return scalars(folder)["data/bad_records"]


def test_grpo_trains_on_substitutes_and_goes_on_in_one_line(tiny_folder, damaged_data, tmp_path):
    options = {"on_bad_media": "quarantine", "max_bad_fraction": 0.5, "shuffle": False, "val_files": None}
    seen = []
    for steps, resumed in ((2, None), (3, tmp_path / "step=2.ckpt")):
        module = grpo_module(tiny_folder)
        data = data_module(tiny_folder, damaged_data, train_format="prompts", num_workers=1, **options)
        saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2)
        run = trainer(tmp_path, max_steps=steps, callbacks=[saving, ContinuedRun()])
        module.on_train_batch_end = lambda *_, module=module: seen.append(
            sorted(group.prompt.record.problem_id for group in module.last_rollouts.groups)
        )
        run.fit(module, data, ckpt_path=resumed)
        assert counted(tmp_path) == list(range(1, steps + 1))
    assert seen == EXPECTED
    assert listed(tmp_path) == list(SUBSTITUTES)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ranks_with_other_damaged_files_train_and_resume_alike(tiny_folder, damaged_data, tmp_path, strategy):
    runs = []
    for stage in ("sft", "grpo"):
        settings = {"stage": stage, "strategy": strategy, "workers": 1, "max_bad_fraction": 0.5}
        runs.append({"folder": str(tmp_path / stage), **settings})
        for step in (2, 4, 5):
            resume = str(tmp_path / stage / f"step={step}.ckpt")
            runs.append({"folder": str(tmp_path / f"{stage}-{step}"), **settings, "resume": resume})
    start(2, tiny_folder, damaged_data, tmp_path, runs)
    for stage in ("sft", "grpo"):
        whole = tmp_path / stage
        assert list(records_by_step(whole).values()) == 2 * EXPECTED
        assert listed(whole) == list(SUBSTITUTES)
        assert counted(whole)[-1] == 3
        for step, found in ((2, [1, 4, 9]), (4, [4, 9]), (5, [9])):  # 9 comes last, on the rank that does not count
            resumed = tmp_path / f"{stage}-{step}"
            check(whole, resumed, first_step=step + 1, last_step=6, exact=True)
            assert listed(resumed) == found
            assert counted(resumed)[-1] == len(found)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_rank_with_too_many_ends_all(tiny_folder, damaged_data, tmp_path, strategy):
    """Rank 1 alone meets a second bad record, in step 3; a tenth of 12 records is 1.2."""
    plan = tmp_path / "plan.json"
    run = {"folder": str(tmp_path / "run"), "stage": "grpo", "strategy": strategy, "max_bad_fraction": 0.1}
    plan.write_text(json.dumps([run]))
    module = "tests.lightning_modules.resumed_runs"
    said = launch(2, tiny_folder, damaged_data, plan, module=module, succeeds=False)
    assert said.count("UserError: 2 of the 8 records drawn by this process could not be used") == 1
    assert f"data.init_args.max_bad_fraction 0.1. The last: {damaged_data}:10 (problem_id 9)" in said
    assert sorted(path.name for path in (tmp_path / "run").glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt"]
