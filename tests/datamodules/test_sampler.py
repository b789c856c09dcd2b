from __future__ import annotations

import itertools
import logging

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from datamodules.sampler import ResumableSampler, sample_seed


def over_ranks(world_size, **arguments):
    return [
        ResumableSampler(**{"batch_size": 2, **arguments}, rank=r, world_size=world_size) for r in range(world_size)
    ]


def test_seeds_are_stable_and_fit_63_bits():
    # blake2b(b"1\x002\x000\x007", digest_size=8) is 3cbc846568981330; its upper 63 bits are the seed.
    assert sample_seed(1, 2, "7") == sample_seed(1, 2, 7) == 2188259254489319832
    seeds = {sample_seed(*arguments) for arguments in itertools.product(range(3), range(3), range(30), range(4))}
    assert len(seeds) == 3 * 3 * 30 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    # A mean of 1080 uniform numbers in [0, 1) deviates by 1 / sqrt(12 * 1080) = 0.009; 0.05 is over 5 deviations.
    assert abs(sum(seed / 2**63 for seed in seeds) / len(seeds) - 0.5) < 0.05


def test_neighboring_numbers_do_not_run_together():
    assert sample_seed(1, 12, "3") != sample_seed(11, 2, "3")
    assert sample_seed(0, 0, "1", member=0) != sample_seed(0, 1, "0", member=0)


def test_file_order_goes_round_the_ranks():
    # 11 records, 2 per rank and batch: 2 steps of 4 records, 3 are left over.
    first, second = over_ranks(2, num_records=11, shuffle=False)
    assert list(first) == [0, 2, 4, 6]
    assert list(second) == [1, 3, 5, 7]
    assert len(first) == len(second) == 4


def test_evaluation_visits_every_record_once():
    ranks = over_ranks(3, num_records=11, shuffle=False, drop_last=False)
    assert [list(sampler) for sampler in ranks] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8]]
    assert [len(sampler) for sampler in ranks] == [4, 4, 3]


def test_an_epoch_is_a_permutation_and_differs_from_the_next():
    sampler = ResumableSampler(100, batch_size=10, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(100))
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(second) == list(range(100))
    assert second != first
    assert list(ResumableSampler(100, batch_size=10, seed=4)) != first


def test_ranks_together_follow_the_order_of_one_rank():
    alone = list(ResumableSampler(50, batch_size=8, seed=1))
    ranks = [list(sampler) for sampler in over_ranks(4, num_records=50, seed=1)]
    assert list(itertools.chain.from_iterable(zip(*ranks, strict=True))) == alone
    assert len(alone) == 48  # 6 steps of 8


def test_the_tail_left_out_changes_with_the_epoch():
    sampler = ResumableSampler(11, batch_size=4, seed=0)
    left_out = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        left_out |= set(range(11)) - set(sampler)
    assert left_out == set(range(11))


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_sampler_gives_the_rest_of_the_epoch_and_counts_it_whole(world_size):
    whole = [list(sampler) for sampler in over_ranks(world_size, num_records=30, seed=5)]
    states = [sampler.state_dict(epoch=0, batches=3) for sampler in over_ranks(world_size, num_records=30, seed=5)]
    assert all(state == states[0] for state in states)
    resumed = over_ranks(world_size, num_records=30, seed=5)
    for sampler, expected in zip(resumed, whole, strict=True):
        sampler.load_state_dict(states[0])
        sampler.set_epoch(0)
        assert list(sampler) == list(sampler) == expected[3 * 2 :]
        assert len(sampler) == len(expected)
        sampler.set_epoch(1)
        assert len(list(sampler)) == len(sampler) == len(expected)


def test_a_second_resume_in_the_same_epoch_counts_on():
    whole = list(ResumableSampler(30, batch_size=2, seed=5))
    state = ResumableSampler(30, batch_size=2, seed=5).state_dict(epoch=0, batches=3)
    first = ResumableSampler(30, batch_size=2, seed=5)
    first.load_state_dict(state)
    second = ResumableSampler(30, batch_size=2, seed=5)
    second.load_state_dict(first.state_dict(epoch=0, batches=5))
    assert list(second) == whole[5 * 2 :]


def test_training_continues_on_another_number_of_ranks():
    whole = list(ResumableSampler(32, batch_size=2, seed=5))
    # 3 steps of 2 ranks consumed 3 * 4 = 12 records; one rank has (32 - 12) / 2 = 10 batches left.
    alone = ResumableSampler(32, batch_size=2, seed=5)
    alone.load_state_dict(ResumableSampler(32, batch_size=2, seed=5, world_size=2).state_dict(epoch=0, batches=3))
    assert list(alone) == whole[12:]
    assert len(alone) == (3 + 10) * 2
    # After 4 batches more, 12 + 4 * 2 = 20 records are consumed; three ranks take 6 per step, 2 steps fit.
    state = alone.state_dict(epoch=0, batches=7)
    assert (state["consumed"], state["batches"]) == (20, 7)
    ranks = over_ranks(3, num_records=32, seed=5)
    for sampler in ranks:
        sampler.load_state_dict(state)
        assert len(sampler) == (7 + 2) * 2
    assert sorted(itertools.chain.from_iterable(ranks)) == sorted(whole[20:32])
    ranks[0].set_epoch(1)
    assert len(ranks[0]) == 32 // 6 * 2


@pytest.mark.parametrize(("records", "batches"), [(12, 3), (13, 3)])
def test_a_finished_epoch_resumes_at_the_next(records, batches):
    sampler = ResumableSampler(records, batch_size=4, seed=2)
    state = sampler.state_dict(epoch=4, batches=batches)
    assert (state["epoch"], state["consumed"], state["batches"]) == (5, 0, 0)
    sampler.set_epoch(5)
    expected = list(sampler)
    resumed = ResumableSampler(records, batch_size=4, seed=2)
    resumed.start_at(4, batches * 4)
    assert (list(resumed), resumed.epoch) == (expected, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_records": 0}, "num_records is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"world_size": 0}, "world_size is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2; it must be from 0 to world_size - 1 = 1"),
        ({"num_records": 7, "world_size": 4}, r"7 records do not fill .* \(batch_size 2 x world_size 4 = 8\)"),
    ],
)
def test_impossible_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResumableSampler(**{"num_records": 10, "batch_size": 2, **arguments})


@pytest.mark.parametrize(
    ("change", "name"), [({"seed": 1}, "seed"), ({"num_records": 9}, "num_records"), ({"shuffle": False}, "shuffle")]
)
def test_a_state_of_another_order_is_refused(change, name):
    state = ResumableSampler(10, batch_size=2).state_dict(epoch=0, batches=1)
    with pytest.raises(ValueError, match=f"was trained with {name} "):
        ResumableSampler(**{"num_records": 10, "batch_size": 2, **change}).load_state_dict(state)


class Recorder(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, batch_index):
        self.seen.append((self.current_epoch, batch_index, batch.tolist()))
        return self.layer(batch.float()[:, None]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Numbers(lightning.LightningDataModule):
    def __init__(self, num_workers):
        super().__init__()
        self.num_workers = num_workers
        self.sampler = ResumableSampler(10, batch_size=2, seed=11)

    def train_dataloader(self):
        return DataLoader(torch.arange(10), batch_size=2, sampler=self.sampler, num_workers=self.num_workers)

    def state_dict(self):
        loop = self.trainer.fit_loop
        epoch, batches = loop.epoch_progress.current.ready - 1, loop.epoch_loop.batch_progress.current.ready
        return self.sampler.state_dict(epoch=epoch, batches=batches)

    def load_state_dict(self, state):
        self.sampler.load_state_dict(state)


@pytest.fixture
def quiet(caplog):
    caplog.set_level(logging.ERROR, logger="lightning.pytorch")


def trained(num_workers=0, callbacks=(), checkpoint=None):
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    module = Recorder()
    trainer.fit(module, datamodule=Numbers(num_workers), ckpt_path=checkpoint)
    return module.seen


@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("step", "num_workers"), [(3, 0), (5, 0), (7, 0), (7, 2), (10, 2)])
def test_lightning_resumes_after_any_step_with_the_batches_that_were_left(tmp_path, step, num_workers):
    # 5 batches per epoch: steps 5 and 10 end an epoch.
    steps = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=step, save_top_k=-1)
    whole = trained(callbacks=[steps])
    assert [len({number for _, _, batch in whole[e : e + 5] for number in batch}) for e in (0, 5, 10)] == [10, 10, 10]
    assert trained(num_workers, checkpoint=tmp_path / f"step={step}.ckpt") == whole[step:]


@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_resumes_after_a_checkpoint_at_an_epochs_end(tmp_path, num_workers):
    ends = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole = trained(callbacks=[ends])
    assert trained(num_workers, checkpoint=tmp_path / "epoch=0.ckpt") == whole[5:]
