"""The memory of a step by fake tensors against measured peaks and by hand."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import cli
from datamodules.video_datamodule import VideoDataModule
from lightning_modules.functional.policy_loss_types import LossConfig
from lightning_modules.grpo_module import GRPOModule
from lightning_modules.memory.configs import RankConfig, model_config, rank_config
from lightning_modules.memory.fake_policy import NF4_BYTES, fake_policy
from lightning_modules.memory.memory_meter import MemoryMeter
from lightning_modules.memory.report import check_memory
from lightning_modules.memory.sizes import largest_that_fits
from lightning_modules.memory.step_memory import StepMemory, StepSize
from lightning_modules.policy.adapters import AdapterConfig
from lightning_modules.sft_module import SFTModule
from lightning_modules.training.optim import OptimizerConfig
from rewards import AccuracyReward
from tests.performance import memory_estimate
from tests.performance.measure import MEBIBYTE, in_fresh_process, resident_peak_mib
from tests.performance.random_models import MERGE, SIZES, build_models, random_completions, video_grid, video_prompt

PROMPT, GROUP, COMPLETION = 1024, 8, 128
SMALL = StepSize(prompts=1, grid=(2, 4, 4), text_tokens=12, completion_tokens=16)
"""20 prompt tokens: 12 and 2 * 2 * 2 merged patches."""


def grpo_module(name: str = "tiny", **settings) -> GRPOModule:
    return GRPOModule(rewards=[AccuracyReward()], model_name_or_path=name, **{"group_size": 4, **settings})


def step_memory(folder, module=None, **rank) -> StepMemory:
    return StepMemory(module or grpo_module(), model_config(str(folder)), RankConfig(**rank))


def numbers(memory: StepMemory, *, trainable: bool = False) -> int:
    return sum(p.numel() for p in memory.policy.parameters() if p.requires_grad or not trainable)


def test_live_and_largest_memory_of_a_few_operations_by_hand():
    meter = MemoryMeter()
    weight = meter.fake((100, 50), torch.float32, "weights")
    with meter.labeled("work"):
        product = weight.double() @ weight.double().T  # 2 * 40,000 bytes of operands with the product of 80,000
        view = product[:10]
    assert meter.peak == {"weights": 20_000, "work": 160_000}
    assert meter.live == {"weights": 20_000, "work": 80_000}
    del product
    assert meter.live["work"] == 80_000  # the view keeps it
    del view
    assert meter.live["work"] == 0
    meter.restart()
    assert meter.peak.total() == 20_000


def test_real_masks_and_fake_conditions_have_lengths():
    meter = MemoryMeter()
    states = meter.fake((2, 3, 5), torch.float32, "states")
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert states[mask].shape == (3, 5)
    assert states[:, 1][torch.tensor([1, 0, 1])].shape == (3, 5)
    assert (states[0, 0] > 0).nonzero().flatten().tolist() == [0, 1, 2, 3, 4]  # all are taken for true


def measured_update(mixed: bool, checkpointing: bool) -> float:
    torch.set_num_threads(1)
    size = SIZES["small"]
    policy = build_models(size, "cpu", torch.float32, gradient_checkpointing=checkpointing).policy

    def update(batch) -> None:
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            policy.logprobs(batch, temperature=1.0).logprobs.sum().backward()

    short = policy.collate([video_prompt(size, 64)])
    update(policy.pack(short, [random_completions(size, [4, 4])]))  # libraries settle
    policy.zero_grad()
    batch = policy.pack(policy.collate([video_prompt(size, PROMPT)]), [random_completions(size, [COMPLETION] * GROUP)])
    return resident_peak_mib(lambda: update(batch))


@pytest.mark.parametrize(("mixed", "checkpointing"), [(False, False), (False, True), (True, False)])
def test_the_peak_of_an_update_is_as_measured(mixed, checkpointing):
    config = build_models(SIZES["small"], "meta", torch.float32).policy.model.config
    module = grpo_module(group_size=GROUP, gradient_checkpointing=checkpointing, loss_config=LossConfig(beta=0))
    memory = StepMemory(module, config, RankConfig(compute_dtype=torch.bfloat16 if mixed else torch.float32))
    frames, rows, columns = video_grid(PROMPT)
    size = StepSize(
        prompts=1,
        grid=(frames, rows * MERGE, columns * MERGE),
        text_tokens=PROMPT - frames * rows * columns,
        completion_tokens=COMPLETION,
    )
    peak = memory.update(size)
    beyond = sum(peak[label] for label in peak.keys() - {"weights", "reference", "optimizer state"})
    assert beyond / MEBIBYTE == pytest.approx(in_fresh_process(measured_update, mixed, checkpointing), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("case", memory_estimate.CASES, ids=lambda case: case.name)
def test_the_peak_of_a_whole_run_is_as_measured(case, monkeypatch):
    for name, value in memory_estimate.NO_KERNEL_CACHE.items():
        monkeypatch.setenv(name, value)
    assert abs(memory_estimate.compare(case)["error"]) < 0.1


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("Qwen/Qwen2.5-VL-72B-Instruct", 73_410_777_344),
    ],
)
def test_known_names_have_the_published_number_of_parameters(name, published):
    policy, stored = fake_policy(grpo_module(name), model_config(name), RankConfig(), MemoryMeter())
    assert sum(parameter.numel() for parameter in policy.parameters()) == published
    assert stored == 4 * published


def test_a_folder_is_read_and_a_missing_one_is_refused(tiny_folder):
    assert model_config(str(tiny_folder)).get_text_config().hidden_size == 128
    with pytest.raises(ValueError, match=r"no config\.json in that folder"):
        model_config("./no-such-folder")


@pytest.mark.parametrize("mixed", [False, True])
def test_caches_of_a_rollout_by_hand(tiny_folder, mixed):
    memory = step_memory(tiny_folder, compute_dtype=torch.bfloat16 if mixed else torch.float32)
    text = memory.policy.model.config.get_text_config()
    width = text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    numbers = text.num_hidden_layers * width
    own = 4 + (2 if mixed else 4)  # autocast leaves keys in float32, since the rotation is
    decode = memory.policy.decode

    def caches(completion_tokens: int) -> tuple[float, float]:
        """Bytes of both after the last token."""
        seen = []

        def looked_at_decode(*arguments):
            logits = decode(*arguments)
            seen.append((memory.meter.live["prompt cache"], memory.meter.live["completion cache"]))
            return logits

        memory.policy.decode = looked_at_decode
        memory.rollout(replace(SMALL, completion_tokens=completion_tokens))
        return seen[-1]

    assert caches(66)[0] == numbers * 20 * (2 + 2 if mixed else 4 + 4)  # attention is computed in bfloat16
    # 4 sequences. The last of 66 tokens is no input; room for 65 is made by doubling room for 64.
    assert caches(66)[1] == numbers * 4 * 128 * own
    assert caches(130)[1] == numbers * 4 * 256 * own


def test_a_frozen_tower_is_not_called_in_the_update(tiny_folder):
    frozen = step_memory(tiny_folder, grpo_module(freeze=["vision_tower", "merger"]))
    trained = step_memory(tiny_folder)
    assert numbers(frozen, trainable=True) < numbers(trained, trainable=True)
    size = replace(SMALL, grid=(8, 16, 16))
    # 8 * 8 * 8 features of 128 numbers.
    assert frozen.update(size)["vision tower"] == 512 * 128 * 4
    assert trained.update(size)["vision tower"] > 10 * 512 * 128 * 4


def test_resident_memory_is_divided_by_the_ranks_that_share_it(tiny_folder):
    one = step_memory(tiny_folder)
    size = 4 * numbers(one)
    resident = {"weights": size, "reference": size, "gradients": size}
    step = one.phases(SMALL)["optimizer step"]
    assert {label: step[label] for label in resident} == resident
    assert step["optimizer state"] == pytest.approx(2 * size, rel=1e-4)  # and small temporaries
    sharded = step_memory(tiny_folder, ranks=2, sharded=True).phases(SMALL)
    assert sharded["optimizer step"]["weights"] == sharded["optimizer step"]["reference"] == size / 2
    assert sharded["optimizer step"]["gradients"] == pytest.approx(size / 2, rel=0.01)  # odd rows are rounded up
    assert sharded["rollout"]["gathered by FSDP2"] == size
    assert sharded["update"]["gathered by FSDP2"] > 0
    kept = step_memory(tiny_folder, ranks=2, sharded=True, gather_once=True)
    assert size < kept.update(SMALL)["gathered by FSDP2"] < 2 * size  # all weights, and the gradients of a layer
    replicated = step_memory(tiny_folder, ranks=2).phases(SMALL)["optimizer step"]
    assert replicated["DDP's buckets"] == replicated["weights"] == size
    offloaded = step_memory(tiny_folder, ranks=2, sharded=True, offloaded=True).phases(SMALL)["optimizer step"]
    assert offloaded.total() == offloaded["other"]


def test_adapters_leave_little_to_optimize_and_need_no_second_copy(tiny_folder):
    adapters = AdapterConfig(r=8, target_modules=("q_proj", "v_proj"))
    half = step_memory(
        tiny_folder, grpo_module(lora=adapters), weight_dtype=torch.bfloat16, compute_dtype=torch.bfloat16
    )
    step = half.phases(SMALL)["optimizer step"]
    assert step["reference"] == 0
    # Adapters have 32 bits on weights of 16.
    trained = numbers(half, trainable=True)
    assert step["gradients"] == 4 * trained
    assert step["weights"] == 2 * (numbers(half) - trained) + 4 * trained
    four_bit = step_memory(tiny_folder, grpo_module(lora=adapters, quantization="nf4"))
    decoder = four_bit.policy.family.language_model(four_bit.policy.model)
    linear = sum(
        module.weight.numel()
        for name, module in decoder.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora" not in name
    )
    assert four_bit.meter.live["weights"] == pytest.approx(4 * (numbers(four_bit) - linear) + NF4_BYTES * linear)


def test_optimizers_of_8_bits_have_a_quarter_of_the_state_and_no_temporaries(tiny_folder):
    memory = step_memory(tiny_folder, grpo_module(optimizer=OptimizerConfig(name="adamw_8bit")))
    step = memory.phases(SMALL)["optimizer step"]
    assert step["optimizer state"] == (2 + 8 / 256) * numbers(memory)
    assert step["optimizer's temporaries"] == 0


def test_gradients_meet_all_activations_where_there_are_several_backward_passes(tiny_folder):
    def gradients(module, **size) -> float:
        return step_memory(tiny_folder, module).update(replace(SMALL, **size, grid=(8, 16, 16)))["gradients"]

    one = gradients(grpo_module())
    every = 4 * numbers(step_memory(tiny_folder))
    assert one < every
    assert gradients(grpo_module(micro_batch_groups=1), prompts=2) == every
    assert gradients(SFTModule(model_name_or_path="tiny"), accumulated=2) == every
    assert gradients(SFTModule(model_name_or_path="tiny")) == every  # dropped after the forward pass


@pytest.mark.parametrize(
    ("trainer", "weights", "computed", "ranks", "sharded"),
    [
        ({}, torch.float32, torch.float32, 1, False),
        ({"precision": "bf16-mixed", "devices": "auto"}, torch.float32, torch.bfloat16, 1, False),
        (
            {"precision": "bf16-true", "devices": 4, "num_nodes": 2, "strategy": "ddp"},
            torch.bfloat16,
            torch.bfloat16,
            8,
            False,
        ),
        (
            {"devices": "8", "strategy": {"class_path": "lightning_modules.training.strategies.FSDP2Strategy"}},
            torch.float32,
            torch.float32,
            8,
            True,
        ),
    ],
)
def test_the_trainer_decides_precision_ranks_and_sharding(trainer, weights, computed, ranks, sharded):
    rank = rank_config(grpo_module(), trainer)
    assert (rank.weight_dtype, rank.compute_dtype, rank.ranks, rank.sharded) == (weights, computed, ranks, sharded)
    assert rank_config(grpo_module(), trainer, 3).ranks == 3
    with pytest.raises(ValueError, match="--ranks is 0"):
        rank_config(grpo_module(), trainer, 0)


@pytest.mark.parametrize("most", [0, 1, 2, 30])
@pytest.mark.parametrize("limit", [0, 5, 10, 40, 150, 400, 10_000])
def test_the_largest_count_that_fits(most, limit):
    def convex(count: int) -> int:
        return max(10, 4 * count + 2, 16 * count - 100)

    expected = max((count for count in range(1, most + 1) if convex(count) <= limit), default=0)
    assert largest_that_fits(convex, limit, most) == expected


def test_where_memory_grows_evenly_four_looks_find_the_limit():
    looks = []
    assert largest_that_fits(lambda count: looks.append(count) or 3 * count + 7, 300, 128) == 97
    assert len(looks) == 4


@pytest.mark.parametrize(("given", "devices", "assumed"), [(None, "auto", True), (8, "auto", False), (None, 8, False)])
def test_a_number_of_ranks_that_the_machine_decides_is_reported(tiny_folder, given, devices, assumed):
    module, data = grpo_module(str(tiny_folder)), VideoDataModule(str(tiny_folder), max_prompt_tokens=1400)
    report = check_memory(module, data, {"devices": devices, "accelerator": "cpu"}, ranks=given)
    assert ("give --ranks" in report.render()) is assumed


def test_the_reported_limit_is_where_the_memory_ends(tiny_folder):
    module = grpo_module(str(tiny_folder), group_size=2)
    data = VideoDataModule(str(tiny_folder), max_prompt_tokens=20_000)
    options = {"trainer": {"accelerator": "cpu"}, "gpu_gib": 0.5, "completion_tokens": 32}
    report = check_memory(module, data, **options)
    assert report.most_frames and not report.limited_by_prompt
    for frames, fits in ((report.most_frames, True), (report.most_frames + 2, False)):
        data.train_frames = replace(data.train_frames, num_frames=frames)
        report = check_memory(module, data, **options)
        assert report.ok is fits
        assert f"{frames} frames {'fit' if fits else 'do not fit'} a GPU of 0.5 GiB" in report.render()


def test_the_command_prints_what_would_fit(tiny_folder, tmp_path, capsys):
    override = tmp_path / "tiny.yaml"
    override.write_text(f"model: {{init_args: {{model_name_or_path: {tiny_folder}}}}}\n", encoding="utf-8")
    files = ["-c", "configs/grpo/qwen2_5_vl_7b.yaml", "-c", str(override)]
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", "model", *files, "--ranks", "8", "--gpu_gib", "0.01"])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "language_model" in printed
    assert "16 frames do not fit a GPU of 0.01 GiB" in printed
    assert "Sharded over the 8 ranks (FSDP2), it would take" in printed
