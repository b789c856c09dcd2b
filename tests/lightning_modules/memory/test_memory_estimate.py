"""The memory estimate against what autograd saves, against measured peaks, and by hand."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import cli
from lightning_modules.grpo_module import GRPOModule
from lightning_modules.memory.estimate import estimate, head_bytes, rollout_bytes
from lightning_modules.memory.report import FrameLimit, check_memory, frame_limit
from lightning_modules.memory.run import architecture, count_parts, model_config, setup_of
from lightning_modules.memory.sizes import Setup, Workload
from lightning_modules.policy.adapters import AdapterConfig
from rewards import AccuracyReward
from tests.performance import memory_estimate
from tests.performance.measure import MEBIBYTE, in_fresh_process, resident_peak_mib
from tests.performance.random_models import SIZES, build_models, random_completions, video_prompt

SEVEN = "Qwen/Qwen2.5-VL-7B-Instruct"
CPU = Setup(
    weight_bytes=4,
    trained_bytes=4,
    compute_bytes=4,
    checkpointing=False,
    chunk_rows=512,
    vision_frozen=False,
    reference=False,
    optimizer_bytes=8,
    fused_optimizer=False,
    ranks=1,
    sharded=False,
    cuda=False,
)
WORK = Workload(
    prompts=1, micro_prompts=1, group_size=8, prompt_tokens=1328, completion_tokens=1024, patches=4288, sampling=True
)
PROMPT, GROUP, COMPLETION = 1024, 8, 128


def grpo_module(name: str = SEVEN, **settings) -> GRPOModule:
    return GRPOModule(rewards=[AccuracyReward()], model_name_or_path=name, **settings)


def packed(policy, size):
    prompt = video_prompt(size, PROMPT)
    return policy.pack(policy.collate([prompt]), [random_completions(size, [COMPLETION] * GROUP)])


def autocast(mixed: bool):
    return torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()


def estimated_update(mixed: bool, checkpointing: bool):
    """Estimate of an update of the small random model."""
    size = SIZES["small"]
    model = build_models(size, "meta", torch.float32).policy.model
    setup = replace(CPU, compute_bytes=2 if mixed else 4, checkpointing=checkpointing)
    patches = int(video_prompt(size, PROMPT).vision.grid_thw.prod())
    work = replace(
        WORK, group_size=GROUP, prompt_tokens=PROMPT, completion_tokens=COMPLETION, patches=patches, sampling=True
    )
    parts = count_parts(grpo_module(), model.config, setup)
    return estimate(architecture(model.config), parts, setup, work)


@pytest.mark.parametrize("mixed", [False, True])
def test_what_autograd_saves_is_what_is_counted(mixed):
    size = SIZES["small"]
    policy = build_models(size, "cpu", torch.float32).policy
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    storages = {}

    def pack(tensor):
        # Casts of weights have a count of their own: activations have a token or patch among their sides.
        if not (mixed and tensor.dtype == torch.bfloat16 and tensor.ndim == 2 and tuple(tensor.shape) in matrices):
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    matrices = {shape for p in policy.parameters() if p.ndim == 2 for shape in (p.shape, p.shape[::-1])}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(mixed):
        outputs = policy.logprobs(packed(policy, size), temperature=1.0)

    saved = sum(t.untyped_storage().nbytes() for place, t in storages.items() if place not in weights)
    found = estimated_update(mixed, checkpointing=False)
    assert outputs.logprobs.requires_grad
    assert saved == pytest.approx(found.language_activations + found.vision_activations, rel=0.03)


def measured_update(mixed: bool, checkpointing: bool) -> float:
    torch.set_num_threads(1)
    size = SIZES["small"]
    policy = build_models(size, "cpu", torch.float32, gradient_checkpointing=checkpointing).policy

    def update(batch) -> None:
        with autocast(mixed):
            policy.logprobs(batch, temperature=1.0).logprobs.sum().backward()

    short = policy.collate([video_prompt(size, 64)])
    update(policy.pack(short, [random_completions(size, [4, 4])]))  # libraries settle
    policy.zero_grad()
    batch = packed(policy, size)
    return resident_peak_mib(lambda: update(batch))


@pytest.mark.parametrize(("mixed", "checkpointing"), [(False, False), (False, True), (True, False)])
def test_the_peak_of_an_update_is_as_measured(mixed, checkpointing):
    found = estimated_update(mixed, checkpointing)
    expected = found.update_extra / MEBIBYTE  # beyond the weights
    assert expected == pytest.approx(in_fresh_process(measured_update, mixed, checkpointing), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("case", memory_estimate.CASES, ids=lambda case: case.name)
def test_the_peak_of_a_whole_run_is_as_measured(case, monkeypatch):
    for name, value in memory_estimate.NO_KERNEL_CACHE.items():
        monkeypatch.setenv(name, value)
    assert abs(memory_estimate.compare(case)["error"]) < 0.15


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976),
        (SEVEN, 8_292_166_656),
        ("Qwen/Qwen2.5-VL-72B-Instruct", 73_410_777_344),
    ],
)
def test_known_names_have_the_published_number_of_parameters(name, published):
    parts = count_parts(grpo_module(name), model_config(name), CPU)
    assert sum(part.parameters for part in parts) == published


def test_a_folder_is_read_and_an_unknown_name_is_refused(tiny_folder):
    assert architecture(model_config(str(tiny_folder))).hidden == 128
    with pytest.raises(ValueError, match=r"'no/such-model'.*Qwen2.5-VL-7B-Instruct"):
        model_config("no/such-model")


def test_rollout_caches_of_7b_by_hand():
    sizes = architecture(model_config(SEVEN))
    mixed = replace(CPU, compute_bytes=2)
    prompts, own, _ = rollout_bytes(sizes, mixed, WORK)
    # 28 layers, 4 KV heads of 128; a key has 4 bytes, a value 2; 1328 prompt tokens once.
    assert prompts == 28 * 1328 * 512 * 6 == 114_229_248
    # 8 sequences with room for 1024 tokens each: 64 doubled four times.
    assert own == 28 * 8 * 1024 * 512 * 6
    # 17 prompt tokens more and twice the prompts: caches are linear in both.
    twice = rollout_bytes(sizes, mixed, replace(WORK, prompts=2))
    assert twice[:2] == (2 * prompts, 2 * own)


def test_log_probabilities_hold_one_chunk():
    sizes = architecture(model_config(SEVEN))
    # Float32: forward two half chunks, backward one: 4 * 512 * 152064 bytes either way; 8192 predicted states of 3584
    # numbers with 4 + 2 * 4 bytes, and 1328 + 8 * 1023 = 9512 states of the row with 4.
    assert head_bytes(sizes, CPU, WORK) == 4 * 512 * 152064 + 8192 * 3584 * 12 + 9512 * 3584 * 4


def test_resident_memory_is_divided_by_the_ranks_that_share_it():
    sizes, parts = architecture(model_config(SEVEN)), count_parts(grpo_module(), model_config(SEVEN), CPU)
    one = estimate(sizes, parts, replace(CPU, reference=True), WORK)
    # Weights, reference and two moments, 4 bytes each, of 8,292,166,656 parameters.
    assert one.resident == 4 * 4 * 8_292_166_656
    eight = estimate(sizes, parts, replace(CPU, reference=True, ranks=8, sharded=True), WORK)
    assert eight.resident == one.resident / 8
    assert eight.gathered > 0
    replicas = estimate(sizes, parts, replace(CPU, reference=True, ranks=8), WORK)
    assert replicas.resident == one.resident
    assert replicas.gradients == 2 * one.gradients  # and DDP's buckets
    offloaded = estimate(sizes, parts, replace(CPU, ranks=8, sharded=True, offloaded=True), WORK)
    assert offloaded.resident == offloaded.gradients == 0


def test_adapters_leave_little_to_optimize_and_need_no_second_copy():
    settings = AdapterConfig(r=8, target_modules=("q_proj", "v_proj"))
    module = grpo_module(lora=settings, quantization="nf4")
    parts = {part.name: part for part in count_parts(module, model_config(SEVEN), CPU)}
    # Per layer A [8, 3584] and B [3584, 8] of q, A [8, 3584] and B [512, 8] of v.
    assert parts["adapters"].trainable == 28 * 8 * (3584 + 3584 + 3584 + 512)
    assert sum(part.trainable for part in parts.values()) == parts["adapters"].trainable
    assert 0.51 < parts["language_model"].bytes_each < 0.53  # 4 bits and scales; norms and biases are few
    assert not setup_of(module, {}, None).reference
    # On weights of 16 bit: two moments of 32 bit, and the adapters themselves.
    half = grpo_module(lora=settings, dtype="bfloat16")
    setup = setup_of(half, {"precision": "bf16-mixed"}, None)
    assert (setup.weight_bytes, setup.trained_bytes, setup.optimizer_bytes) == (2, 4, 8)
    (adapters,) = (part for part in count_parts(half, model_config(SEVEN), setup) if part.name == "adapters")
    assert adapters.bytes_each == 4
    assert setup_of(grpo_module(), {}, None).reference == (grpo_module().loss_config.beta > 0)


def test_frozen_parts_have_no_gradients_and_a_frozen_tower_no_activations():
    module = grpo_module(freeze=["vision_tower", "merger"])
    config = model_config(SEVEN)
    parts, setup = count_parts(module, config, CPU), setup_of(module, {"accelerator": "cpu"}, None)
    assert {part.name for part in parts if not part.trainable} == {"vision_tower", "merger"}
    assert setup.vision_frozen
    found = estimate(architecture(config), parts, setup, WORK)
    assert found.vision_activations == 4288 // 4 * 3584 * 4  # the features of all patches


@pytest.mark.parametrize(
    ("trainer", "weight", "compute", "ranks", "sharded"),
    [
        ({}, 4, 4, 1, False),
        ({"precision": "bf16-mixed", "devices": "auto"}, 4, 2, 1, False),
        ({"precision": "bf16-true", "devices": 4, "num_nodes": 2, "strategy": "ddp"}, 2, 2, 8, False),
        (
            {"devices": "8", "strategy": {"class_path": "lightning_modules.training.strategies.FSDP2Strategy"}},
            4,
            4,
            8,
            True,
        ),
    ],
)
def test_the_trainer_decides_precision_ranks_and_sharding(trainer, weight, compute, ranks, sharded):
    setup = setup_of(grpo_module(), trainer, None)
    assert (setup.weight_bytes, setup.compute_bytes, setup.ranks, setup.sharded) == (weight, compute, ranks, sharded)
    assert setup_of(grpo_module(), trainer, 3).ranks == 3
    with pytest.raises(ValueError, match="--ranks is 0"):
        setup_of(grpo_module(), trainer, 0)


@pytest.mark.parametrize(
    ("most_that_fits", "most_allowed", "expected"),
    [(9, 20, (8, False)), (100, 21, (20, True)), (1, 20, (0, False))],
)
def test_the_largest_number_of_frames(most_that_fits, most_allowed, expected):
    limit = frame_limit(lambda frames: frames <= most_that_fits, lambda frames: frames <= most_allowed, 2)
    assert limit == FrameLimit(frames=expected[0], by_prompt=expected[1])


@pytest.mark.parametrize(("given", "devices", "assumed"), [(None, "auto", True), (8, "auto", False), (None, 8, False)])
def test_a_number_of_ranks_that_the_machine_decides_is_said(tiny_folder, given, devices, assumed):
    from datamodules.video_datamodule import VideoDataModule

    module, data = grpo_module(str(tiny_folder), group_size=2), VideoDataModule(str(tiny_folder))
    report = check_memory(module, data, {"devices": devices, "accelerator": "cpu"}, ranks=given)
    assert ("give --ranks" in report.render()) is assumed


def test_the_reported_limit_is_where_the_memory_ends(tiny_folder):
    from datamodules.video_datamodule import VideoDataModule

    module = grpo_module(str(tiny_folder), group_size=2)
    data = VideoDataModule(str(tiny_folder), max_prompt_tokens=100_000)
    options = {"trainer": {"accelerator": "cpu"}, "gpu_gib": 1.0, "completion_tokens": 32}
    limit = check_memory(module, data, **options).limit
    assert limit.frames and not limit.by_prompt
    for frames, fits in ((limit.frames, True), (limit.frames + 2, False)):
        data.train_frames = replace(data.train_frames, num_frames=frames)
        report = check_memory(module, data, **options)
        assert report.ok is fits
        assert f"{frames} frames {'fit' if fits else 'do not fit'} a GPU of 1 GiB" in report.render()


def test_the_command_prints_the_published_7b_run_and_says_what_would_fit(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", "model", "-c", "configs/grpo/qwen2_5_vl_7b.yaml", "--ranks", "8"])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "8,292,166,656" in printed
    assert "16 frames do not fit a GPU of 80 GiB" in printed
    assert "Sharded over the 8 ranks (FSDP2), it would take" in printed
