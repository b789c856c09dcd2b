"""vLLM loads what `python cli.py export` writes and answers with the policy's own tokens and log-probabilities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import cli
from datamodules.media import read_media
from datamodules.records import RecordFile
from datamodules.types import EncodedPrompt, VideoRecord
from datamodules.video.types import VideoClip
from lightning_modules.policy.policy import Policy
from lightning_modules.rollouts.transformers_engine import TransformersEngine
from lightning_modules.rollouts.types import SamplingConfig
from tests.conftest import SMALL_PROFILE
from tests.test_configs import at_hand, clean_environment  # noqa: F401 - fixtures
from tests.test_export_command import FULL_RUN, only_checkpoints, trained

pytestmark = pytest.mark.vllm

GREEDY = SamplingConfig(greedy=True, max_new_tokens=16)
LORA = "--model.init_args.lora={r: 4, alpha: 8}"
RUNS = {
    "whole weights": ([], []),
    "merged adapters": ([LORA], ["--adapters=merge"]),
    "kept adapters": ([LORA], ["--adapters=keep"]),
}
"""Options of the fine-tuning run, whose two steps move whole weights and adapters alike, and of the export."""


@pytest.fixture
def shown(mixed_data: Path) -> list[tuple[VideoRecord, VideoClip | None]]:
    """A text, an image, a video of four temporal patches, and the same frames as if two seconds apart."""
    profile = replace(SMALL_PROFILE, num_frames=8)
    first = {record.data_type: record for record in reversed(list(RecordFile(mixed_data, mixed_data.parent)))}
    read = [(first[kind], read_media(first[kind], mixed_data.parent, profile)) for kind in ("text", "image", "video")]
    record, clip = read[-1]
    return [*read, (record, replace(clip, sample_fps=0.5))]


def vllm_prompt(record: VideoRecord, clip: VideoClip | None, encoder) -> dict:
    """What vLLM takes: text with one media token, and the frames that the policy sees."""
    messages = encoder.template.messages(record)
    prompt = {"prompt": encoder.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)}
    if clip is None:
        return prompt
    frames = clip.frames.permute(0, 2, 3, 1).numpy()  # [F, H, W, 3]
    if not clip.is_video:
        return {**prompt, "multi_modal_data": {"image": Image.fromarray(frames[0])}}
    metadata = {
        "fps": clip.sample_fps,
        "total_num_frames": len(frames),
        "duration": len(frames) / clip.sample_fps,
        "frames_indices": list(range(len(frames))),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return {**prompt, "multi_modal_data": {"video": [(frames, metadata)]}}


def vllm_outputs(model: Path, adapters: Path | None, prompts: list[dict], *, banned: tuple[int, ...]) -> list:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.lora.request import LoRARequest

    engine = LLM(
        model=str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        kv_cache_memory_bytes=2**26,
        block_size=32,
        limit_mm_per_prompt={"image": 1, "video": 1},
        logprobs_mode="raw_logprobs",  # before the ban, as the policy's are
        seed=0,
        **({"enable_lora": True, "max_lora_rank": 8} if adapters else {}),
    )
    sampling = SamplingParams(
        temperature=0, max_tokens=GREEDY.max_new_tokens, logprobs=0, logit_bias=dict.fromkeys(banned, -100.0)
    )
    request = LoRARequest("export", 1, str(adapters)) if adapters else None
    try:
        return engine.generate(prompts, sampling, use_tqdm=False, lora_request=request)
    finally:
        del engine
        cleanup_dist_env_and_memory()


def own_answers(policy: Policy, prompts: list[EncodedPrompt]) -> list[list[int]]:
    batch = policy.collate(prompts)
    groups = TransformersEngine(policy).generate(batch, GREEDY, group_size=1, seeds=range(len(prompts)))
    return [group.completions[0].token_ids.tolist() for group in groups]


def own_logprobs(policy: Policy, prompts: list[EncodedPrompt], answers: list[list[int]]) -> list[torch.Tensor]:
    with torch.no_grad():
        packed = policy.eval().pack(policy.collate(prompts), [[torch.tensor(answer)] for answer in answers])
        rows = policy.logprobs(packed, temperature=1.0).logprobs
    return [row[: len(answer)] for row, answer in zip(rows, answers, strict=True)]


@pytest.mark.parametrize("run", RUNS)
def test_vllm_answers_as_the_trained_policy_does(
    run,
    at_hand,  # noqa: F811
    tiny_folder,
    tiny_policy,
    encoder,
    shown,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine in this process, which pytest can end
    fitting, exporting = RUNS[run]
    module, checkpoint = trained(
        at_hand, FULL_RUN, "--trainer.accumulate_grad_batches=1", only_checkpoints(2), *fitting
    )
    folder = tmp_path / "out"
    assert cli.main(["export", "--ckpt_path", checkpoint, "--output", str(folder), *exporting]) == 0

    prompts = [encoder.encode_prompt(*pair) for pair in shown]
    inputs = [vllm_prompt(*pair, encoder) for pair in shown]
    model, adapters = (tiny_folder, folder) if "--adapters=keep" in exporting else (folder, None)
    outputs = vllm_outputs(model, adapters, inputs, banned=module.policy.family.vision_token_ids)
    assert [output.prompt_token_ids for output in outputs] == [prompt.input_ids.tolist() for prompt in prompts]
    completions = [output.outputs[0] for output in outputs]
    answers = [list(completion.token_ids) for completion in completions]
    assert answers == own_answers(module.policy, prompts)

    trained_on, untrained = (own_logprobs(policy, prompts, answers) for policy in (module.policy, tiny_policy))
    for completion, expected, before in zip(completions, trained_on, untrained, strict=True):
        rows = zip(completion.token_ids, completion.logprobs, strict=True)
        found = torch.tensor([row[token].logprob for token, row in rows])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert (found - before).abs().max() > 0.01, "the comparison would not notice the weights before training"
    fast, slow = trained_on[-2:]
    assert (fast - slow).abs().max() > 0.01, "the comparison would not notice wrong seconds per patch"
