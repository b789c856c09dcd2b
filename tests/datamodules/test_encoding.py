"""Patches, ids and sizes against the processor of transformers."""

import pytest
import torch

from datamodules.encoding import PromptEncoder, join_vision, media_token_id, patchify
from datamodules.prompts import PromptTemplate
from datamodules.records import RecordFile
from datamodules.video.types import PatchGeometry, VideoClip
from lightning_modules.policy.qwen_vl import QwenVLFamily


def clip(frames=4, height=56, width=84, *, is_video=True, sample_fps=2.0):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)
    return VideoClip(frames=pixels, sample_fps=sample_fps, is_video=is_video)


@pytest.fixture
def records(mixed_data):
    return RecordFile(mixed_data, mixed_data.parent)


def record_of(records, data_type):
    return next(record for record in records if record.data_type == data_type)


def test_video_patches_and_normalization_equal_the_processor(tiny_policy):
    video = clip()
    expected = tiny_policy.processor.video_processor(
        [video.frames],
        video_metadata=[{"total_num_frames": 4, "fps": 2.0, "frames_indices": [0, 1, 2, 3], "duration": 2.0}],
        do_sample_frames=False,
        do_resize=False,
        return_tensors="pt",
    )
    patches, grid = patchify(video.frames, PatchGeometry())
    normalized = tiny_policy.family._normalized(patches, tiny_policy.model.model.visual)
    assert grid.tolist() == expected["video_grid_thw"][0].tolist() == [2, 4, 6]
    torch.testing.assert_close(normalized, expected["pixel_values_videos"], rtol=0, atol=1e-6)


def test_image_patches_and_normalization_equal_the_processor(tiny_policy):
    image = clip(frames=1, is_video=False, sample_fps=0.0)
    expected = tiny_policy.processor.image_processor([image.frames[0]], do_resize=False, return_tensors="pt")
    patches, grid = patchify(image.frames, PatchGeometry())
    normalized = tiny_policy.family._normalized(patches, tiny_policy.model.model.visual)
    assert grid.tolist() == expected["image_grid_thw"][0].tolist() == [1, 4, 6]
    torch.testing.assert_close(normalized, expected["pixel_values"], rtol=0, atol=1e-6)


def test_prompt_ids_equal_the_processor(tiny_policy, encoder, records):
    record, video = record_of(records, "video"), clip()
    prompt = encoder.encode_prompt(record, video)
    text = encoder.tokenizer.apply_chat_template(
        encoder.template.messages(record), tokenize=False, add_generation_prompt=True
    )
    expected = tiny_policy.processor(
        text=[text],
        videos=[video.frames],
        video_metadata=[{"total_num_frames": 4, "fps": 2.0, "frames_indices": [0, 1, 2, 3], "duration": 2.0}],
        do_sample_frames=False,
        do_resize=False,
        return_tensors="pt",
    )
    assert prompt.input_ids.tolist() == expected["input_ids"][0].tolist()


def test_seconds_per_patch_are_real_unless_fixed(encoder, records):
    record = record_of(records, "video")
    # Two frames per patch at 1.6 frames per second: 1.25 s.
    assert encoder.encode_prompt(record, clip(sample_fps=1.6)).vision.seconds_per_patch.tolist() == [1.25]
    fixed = PromptEncoder(encoder.tokenizer, encoder.template, seconds_per_patch=1.0)
    assert fixed.encode_prompt(record, clip(sample_fps=1.6)).vision.seconds_per_patch.tolist() == [1.0]


def test_the_target_ends_with_the_end_of_the_turn(encoder, records):
    record = next(record for record in records if record.process)
    ids = encoder.encode_target(record).tolist()
    assert ids[-1] == encoder.tokenizer.eos_token_id
    assert encoder.tokenizer.decode(ids[:-1]) == record.process + record.solution


def test_a_question_with_a_media_token_is_refused(encoder, records):
    record = record_of(records, "text")
    template = PromptTemplate(question="{problem} <|video_pad|>")
    with pytest.raises(ValueError, match=r"mixed.*problem_id.*1 media tokens"):
        PromptEncoder(encoder.tokenizer, template).encode_prompt(record, None)


def test_a_prompt_over_the_limit_is_refused_not_cut(encoder, records):
    short = PromptEncoder(encoder.tokenizer, encoder.template, max_prompt_tokens=10)
    with pytest.raises(ValueError, match="more than max_prompt_tokens = 10"):
        short.encode_prompt(record_of(records, "video"), clip())


def test_a_tokenizer_without_media_tokens_is_refused(encoder):
    with pytest.raises(ValueError, match=r"has no token <\|no_such_pad\|>"):
        media_token_id(encoder.tokenizer, "<|no_such_pad|>")


def test_joined_vision_keeps_the_order(mixed_prompts):
    joined = join_vision([prompt.vision for prompt in mixed_prompts])
    parts = [prompt.vision for prompt in mixed_prompts if prompt.vision is not None]
    assert joined.grid_thw.tolist() == [grid for part in parts for grid in part.grid_thw.tolist()]
    assert len(joined.patches) == int(joined.grid_thw.prod(dim=1).sum())
    assert joined.is_video.tolist() == [part.is_video.item() for part in parts]
    assert join_vision([None, None]) is None


def test_families_take_any_mixture_of_media(tiny_policy, mixed_prompts):
    assert isinstance(tiny_policy.family, QwenVLFamily)
    features = tiny_policy.family.encode_vision(
        tiny_policy.model, join_vision([prompt.vision for prompt in mixed_prompts])
    )
    media_tokens = sum(
        int(torch.isin(prompt.input_ids, torch.tensor(list({11, 12, 13}))).sum()) for prompt in mixed_prompts
    )
    assert len(features) == media_tokens
