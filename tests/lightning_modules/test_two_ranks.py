"""Two gloo processes with half of the batch each against one process with all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_modules.policy.adapters import is_adapter
from lightning_modules.policy.loading import load_policy
from tests.lightning_modules import two_ranks
from tests.lightning_modules.module_runs import scalars
from tests.lightning_modules.sft_gradients import assert_same_steps, expected_steps

ROOT = Path(__file__).parents[2]
STRATEGIES = ("ddp", "fsdp2")


def launch(ranks, *arguments, module="tests.lightning_modules.two_ranks", succeeds=True, seconds=240):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    script = ["-m", module, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
    )
    assert (done.returncode == 0) == succeeds, done.stderr[-4000:]
    return done.stdout if succeeds else done.stderr


@pytest.fixture(scope="module")
def run(tiny_folder, mixed_data, tmp_path_factory):
    """Runs with the given options on so many ranks, once for all tests; gives the folder of what they left."""
    folders = {}

    def runner(ranks, *options, data=mixed_data, model=tiny_folder):
        key = (ranks, data, model, options)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("run")
            arguments = (model, data, folders[key], *options)
            if ranks == 1 and not any("fsdp2" in option for option in options):
                two_ranks.run(two_ranks.parse(arguments))
            else:
                launch(ranks, *arguments)
        return folders[key]

    return runner


def assert_same_training(folder, expected, *, steps):
    """The last so many steps of two runs."""
    actual, expected = scalars(folder), scalars(expected)
    tags = {tag for tag in expected if tag.startswith("train/")} - {"train/tokens_per_second"}
    for tag in sorted(tags - {"train/logprob_difference/mean", "train/logprob_difference/max"}):  # rounding alone
        assert actual[tag][-steps:] == pytest.approx(expected[tag][-steps:], rel=1e-4, abs=1e-6), tag
        assert len(actual[tag]) >= steps


GRPO = ("--steps=3", "--beta=0.04")
DAPO = ("--steps=3", "--loss=dapo")
SFT = ("--steps=4", "--stage=sft")


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("ddp", GRPO),
        pytest.param("ddp", DAPO, marks=pytest.mark.slow),
        ("ddp", SFT),
        ("fsdp2", GRPO),
        ("fsdp2", SFT),
    ],
    ids=["ddp-grpo", "ddp-dapo", "ddp-sft", "fsdp2-grpo", "fsdp2-sft"],
)
def test_two_ranks_give_the_trajectory_of_one(run, strategy, options):
    one, two = run(1, *options), run(2, *options, f"--strategy={strategy}")
    assert_same_training(two, one, steps=len(scalars(one)["train/loss"]))
    one, two = scalars(one), scalars(two)
    assert all(slow >= own for slow, own in zip(two["seconds/slowest_rank/step"], two["seconds/step"], strict=True))
    assert "seconds/slowest_rank/step" not in one
    for tag in ("val/accuracy", "val/completion_tokens", "val/accuracy/OCR"):
        assert two[tag] == pytest.approx(one[tag], rel=1e-5), tag


@pytest.fixture(scope="module")
def untied_folder(tiny_folder, tmp_path_factory):
    """The tiny model with an output projection of its own, which the prompts' backward pass does not reach."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(1.1 * model.lm_head.weight.detach())
    folder = tmp_path_factory.mktemp("untied")
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("ddp", ()),
        ("fsdp2", ()),
        pytest.param("fsdp2_every", (), marks=pytest.mark.slow),
        pytest.param("fsdp2_once", (), marks=pytest.mark.slow),
        pytest.param("ddp", ("--lora",), marks=pytest.mark.slow),
        pytest.param("fsdp2", ("--lora",), marks=pytest.mark.slow),
    ],
)
def test_ranks_may_take_groups_in_slices(run, untied_folder, strategy, options):
    one = run(1, *GRPO, *options, model=untied_folder)
    two = run(2, *GRPO, *options, f"--strategy={strategy}", "--slices=3", model=untied_folder)
    assert_same_training(two, one, steps=3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_token_of_a_step_weighs_the_same_on_whatever_rank(tiny_folder, mixed_data, tmp_path, strategy):
    """Two ranks with windows of 4 records take a step of 8 and, at the end of the epoch, one of 4."""
    module = "tests.lightning_modules.sft_gradients"
    launch(2, tiny_folder, mixed_data, tmp_path, f"--strategy={strategy}", module=module)
    steps = torch.load(tmp_path / "steps.pt", weights_only=True)
    assert_same_steps(steps, expected_steps(tiny_folder, mixed_data, [range(8), range(8, 12)]))


def test_one_file_saved_by_sharded_ranks_resumes_on_one_rank(run):
    whole = run(2, *SFT, "--strategy=fsdp2")
    checkpoint = next(whole.glob("step=2*.ckpt"))
    assert checkpoint.is_file()
    assert_same_training(run(1, *SFT, f"--resume={checkpoint}"), whole, steps=2)


def test_the_export_of_sharded_ranks_is_the_trained_model(run, tiny_folder, mixed_prompts):
    folder = run(2, *SFT, "--strategy=fsdp2")
    trained, exported = load_policy(str(tiny_folder)), load_policy(str(folder / "model"))
    weights = torch.load(next(folder.glob("step=4*.ckpt")), weights_only=False)["state_dict"]
    names = {f"policy.{name}" for name in trained.state_dict()}
    trained.load_state_dict({name.removeprefix("policy."): weights[name] for name in weights.keys() & names})
    batch = trained.collate(mixed_prompts[:4])
    with torch.no_grad():
        logits = [policy.eval().prefill(batch, group_size=1)[0] for policy in (trained, exported)]
    assert torch.equal(*logits)
    single = run(1, *SFT) / "model" / "model.safetensors"
    assert (folder / "model" / "model.safetensors").stat().st_size == single.stat().st_size


def test_a_sharded_policy_computes_what_a_whole_one_does(tiny_folder, mixed_data):
    output = launch(2, tiny_folder, mixed_data, module="tests.lightning_modules.policy.sharded_policy")
    assert output.count("sharded equals whole") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "ranks"),
    [
        ("ddp", "auto", 1),
        ("ddp", "ddp", 2),
        ("ddp", "fsdp2", 2),
        ("fsdp2", "auto", 1),
        ("fsdp2", "ddp", 2),
        ("fsdp2", "fsdp2", 2),
        ("fsdp2_folders", "fsdp2_folders", 2),
    ],
)
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_resume(run, stage, before, after, ranks):
    options = (f"--stage={stage}", "--steps=4", "--beta=0.04")
    saved_with, resumed_with = (f"--strategy={name}" for name in (before, after))
    whole = run(2, *options, saved_with)
    (checkpoint,) = whole.glob("step=2*.ckpt")
    assert_same_training(run(ranks, *options, resumed_with, f"--resume={checkpoint}"), whole, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp2_folders"])
def test_a_synced_reference_trains_and_resumes_alike(run, strategy):
    options = ("--steps=4", "--beta=0.5", "--sync=1")
    alone, whole = run(1, *options), run(2, *options, f"--strategy={strategy}")
    assert_same_training(whole, alone, steps=4)
    (checkpoint,) = whole.glob("step=2*.ckpt")
    if strategy == "fsdp2_folders":
        assert (checkpoint / "reference").is_dir()
    else:
        assert_same_training(run(1, *options, f"--resume={checkpoint}"), whole, steps=2)
    assert_same_training(run(2, *options, f"--strategy={strategy}", f"--resume={checkpoint}"), whole, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("base", [(), ("--quantization=nf4",)], ids=["lora", "qlora"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_adapters_train_alike_with_themselves_disabled_as_reference(run, strategy, base):
    options = ("--steps=4", "--beta=0.5", "--lora", *base)
    alone, whole = run(1, *options), run(2, *options, f"--strategy={strategy}")
    assert_same_training(whole, alone, steps=4)
    (checkpoint,) = whole.glob("step=2*.ckpt")
    assert_same_training(run(1, *options, f"--resume={checkpoint}"), whole, steps=2)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("fsdp2", ()),
        pytest.param("ddp", (), marks=pytest.mark.slow),
        pytest.param("ddp", ("--quantization=nf4",), marks=pytest.mark.slow),
        pytest.param("fsdp2", ("--quantization=nf4",), marks=pytest.mark.slow),
        pytest.param("fsdp2", ("--precision=bf16-mixed",), marks=pytest.mark.slow),
        pytest.param("fsdp2", ("--precision=bf16-true",), marks=pytest.mark.slow),
        pytest.param("ddp", ("--precision=bf16-true",), marks=pytest.mark.slow),
    ],
)
def test_adapters_on_a_bfloat16_base_are_float32_on_several_ranks(run, strategy, options):
    folder = run(2, "--steps=2", "--beta=0.5", "--lora", "--dtype=bfloat16", *options, f"--strategy={strategy}")
    # Sampler and trainer differ by roundings to bfloat16 (eps 0.008), no more.
    assert max(scalars(folder)["train/logprob_difference/mean"]) < 0.02
    (path,) = folder.glob("step=2*.ckpt")
    checkpoint = torch.load(path, weights_only=False)
    adapters = {value.dtype for name, value in checkpoint["state_dict"].items() if is_adapter(name)}
    moments = {state["exp_avg"].dtype for state in checkpoint["optimizer_states"][0]["state"].values()}
    assert adapters == moments == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_folder_of_shards_resumes_on_another_number_of_ranks(run, stage, before, after):
    options = (f"--stage={stage}", "--steps=4", "--beta=0.04", "--strategy=fsdp2_folders")
    whole = run(before, *options)
    (checkpoint,) = whole.glob("step=2*.ckpt")
    assert checkpoint.is_dir() and not (checkpoint / "reference").exists()
    assert_same_training(run(after, *options, f"--resume={checkpoint}"), whole, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_checkpoint_of_one_rank_resumes_on_sharded_ranks(run, stage):
    options = (f"--stage={stage}", "--steps=4", "--beta=0.04")
    whole = run(1, *options)
    (checkpoint,) = whole.glob("step=2*.ckpt")
    assert_same_training(run(2, *options, "--strategy=fsdp2", f"--resume={checkpoint}"), whole, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--stage=sft", "--accumulate=2"), ("--beta=0.04",)], ids=["sft", "grpo"])
@pytest.mark.parametrize("strategy", [*STRATEGIES, "fsdp2_every"])
def test_several_backward_passes_make_one_step(run, strategy, options):
    options = (*options, "--steps=2")
    assert_same_training(run(2, *options, f"--strategy={strategy}"), run(1, *options), steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_shards_in_the_memory_of_the_host_train_alike(run, stage):
    options = (f"--stage={stage}", "--steps=4", "--beta=0.04")
    assert_same_training(run(2, *options, "--strategy=fsdp2_offload"), run(1, *options), steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_half_precision(run, stage, precision, ranks):
    options = (f"--stage={stage}", "--steps=4", "--beta=0.04")
    strategy = "--strategy=fsdp2" if ranks == 2 else "--strategy=auto"
    folder = run(ranks, *options, f"--precision={precision}", strategy)
    logged, expected = scalars(folder), scalars(run(1, *options))
    if stage == "sft":
        for tag in ("train/loss", "train/grad_norm"):
            assert logged[tag] == pytest.approx(expected[tag], rel=0.05), tag
    else:
        # Other roundings sample other tokens; sampler and trainer still agree about them.
        assert max(logged["train/logprob_difference/mean"]) < 0.02
        assert min(logged["train/grad_norm"]) > 0
    weights = torch.load(next(folder.glob("step=4*.ckpt")), weights_only=False)["state_dict"]
    kept = torch.float32 if precision == "bf16-mixed" else torch.bfloat16
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {kept}


@pytest.fixture(scope="module")
def parted_data(mixed_data):
    """In file order, one rank of two gets records without media, the other videos."""
    records = [json.loads(line) for line in mixed_data.read_text().splitlines()]
    text = [record for record in records if record["data_type"] == "text"]
    video = [record for record in records if record["data_type"] == "video"]
    rows = [record for pair in zip(text, video, strict=False) for record in pair]
    path = mixed_data.with_name("parted.jsonl")
    copies = [{**row, "problem_id": f"{copy}-{row['problem_id']}"} for copy in range(4) for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in copies))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "options",
    [
        ("--stage=sft",),
        ("--beta=0.04",),
        ("--stage=sft", "--freeze", "vision_tower", "merger"),
        ("--beta=0.04", "--freeze", "vision_tower", "merger"),
    ],
    ids=["sft", "grpo", "sft-frozen-tower", "grpo-frozen-tower"],
)
def test_ranks_with_and_without_media_train_together(run, parted_data, options, strategy):
    folder = run(2, *options, "--steps=20", "--in_file_order", f"--strategy={strategy}", data=parted_data)
    assert len(scalars(folder)["train/loss"]) == 20


# In file order and batches of 4 on two ranks, record 9 is rank 1's in step 3 of an epoch of 3.
POISONED = ("--poisoned=9", "--in_file_order", "--steps=4")


def on_two_ranks(*quick):
    """Both stages with both strategies; the minutes of all but `quick` are spent in the slow suite."""
    cases = [(stage, strategy) for stage in ("sft", "grpo") for strategy in STRATEGIES]
    marked = [case if case in quick else pytest.param(*case, marks=pytest.mark.slow) for case in cases]
    return pytest.mark.parametrize(("stage", "strategy"), marked)


@on_two_ranks(("grpo", "fsdp2"))
def test_all_ranks_stop_where_one_is_not_finite(tiny_folder, mixed_data, tmp_path, stage, strategy):
    options = (f"--stage={stage}", f"--strategy={strategy}", *POISONED)
    said = launch(2, tiny_folder, mixed_data, tmp_path, *options, succeeds=False)
    assert [path.name for path in (tmp_path / "nonfinite").iterdir()] == ["step000003-rank1.pt"]
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=2.ckpt"] and not (tmp_path / "model").exists()
    for rank in (0, 1):
        assert f"On rank {rank} of 2, after 2 optimizer steps, in train" in said
    assert said.count("rank 1 of 2: the loss is nan" if stage == "sft" else "rank 1 of 2: Reward 'letter'") >= 2
    assert "the weights are those after step 2" in said and "The weights were not finite" not in said


@on_two_ranks(("sft", "ddp"))
def test_all_ranks_skip_where_one_is_not_finite(run, stage, strategy):
    options = (f"--stage={stage}", *POISONED, "--on_nonfinite=skip")
    folder, alone = run(2, *options, f"--strategy={strategy}"), run(1, *options)
    for place in (folder, alone):
        assert scalars(place)["train/skipped_steps"] == [0.0, 0.0, 1.0, 1.0]
    weights, expected = (
        torch.load(next(place.glob("step=4*.ckpt")), weights_only=True)["state_dict"] for place in (folder, alone)
    )
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-4, msg=name)
    rate = scalars(folder)["train/grad_norm"]
    assert rate[-1] == pytest.approx(scalars(alone)["train/grad_norm"][-1], rel=1e-3)


def test_a_plain_trainer_visits_every_record_once(tiny_folder, mixed_data, tmp_path):
    """Without `use_distributed_sampler=False`, which only the command line sets."""
    launch(2, tiny_folder, mixed_data, tmp_path, module="tests.lightning_modules.plain_trainer")
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    records = sorted(json.loads(line)["problem_id"] for line in mixed_data.read_text().splitlines())
    for stage in ("fit", "validate", "predict"):  # 12 records: 3 steps of 2 records on each of 2 ranks
        assert sorted(map(int, first[stage] + second[stage])) == records, stage
