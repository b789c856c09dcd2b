"""The tiny model is a real Qwen2.5-VL folder: it reloads unchanged, and its parts agree with one another."""

import json
import math

import numpy as np
import pytest
import torch

from datamodules.synthetic.dataset import corpus, questions
from datamodules.synthetic.scene import render
from lightning_modules.policy.tiny import SPECIAL_TOKENS, build_model, build_tokenizer, write_tiny_model

QUESTION = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which color appears first?"}]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(corpus(), 384)


@pytest.fixture(scope="module")
def processor(folder):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.fixture(scope="module")
def batch(processor):
    """One rendered clip of 16 frames at 8 frames per second, of which every second frame is kept."""
    indices = list(range(0, 16, 2))
    frames = render(next(questions(np.random.default_rng(0), 1)).scene)[indices]
    metadata = {"total_num_frames": 16, "fps": 8.0, "frames_indices": indices, "duration": 2.0}
    text = processor.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return processor(text=[text], videos=[video], video_metadata=[metadata], return_tensors="pt")


def same_weights(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_parameter_count(model):
    # Text: embedding 384*128 = 49152, which is the head as well. A layer: q 128*128+128, k and v 2*(128*64+64),
    # o 128*128, three MLP matrices 3*128*256, two norms 256, in sum 147968. Final norm 128.
    text = 49152 + 2 * 147968 + 128
    # Vision: patches 3*2*14*14*64 = 75264. The block: qkv 64*192+192, proj 64*64+64, gate and up 2*(64*128+128),
    # down 128*64+64, two norms 128, in sum 41664. Merger: norm 64, 256*256+256, 256*128+128.
    vision = 75264 + 41664 + 64 + 65792 + 32896
    assert model.num_parameters() == text + vision == 560896


def test_reload_gives_identical_weights_and_the_real_classes(model, processor, tokenizer):
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    assert type(model) is Qwen2_5_VLForConditionalGeneration and type(processor) is Qwen2_5_VLProcessor
    assert same_weights(model, build_model(tokenizer, seed=0))
    assert model.dtype == torch.float32


def test_seed_decides_the_weights_and_nothing_else(tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (build_model(tokenizer, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert same_weights(first, second)
    assert not same_weights(first, other)


def test_initial_weights_have_the_stated_spread(tokenizer):
    model = build_model(tokenizer, seed=0).model
    for weight in (
        model.language_model.embed_tokens.weight,
        model.language_model.layers[1].mlp.up_proj.weight,
        model.visual.patch_embed.proj.weight,
        model.visual.merger.mlp[0].weight,
    ):
        # Over 30000 values: the standard deviation of the estimate is below 0.06 / sqrt(2 * 30000) = 0.0003.
        assert weight.std().item() == pytest.approx(0.06, abs=0.002)


def test_tokenizer_encodes_the_same_after_a_reload(folder, tokenizer):
    from transformers import AutoTokenizer

    reloaded = AutoTokenizer.from_pretrained(folder)
    odd = "<|im_start|>user\n<|video_pad|>Ünïcode 中文, don't 123  x\n\n y\t<answer>-4.5</answer><|im_end|>\n"
    for text in [odd, *list(corpus(9))[:200]]:
        assert reloaded(text).input_ids == tokenizer(text).input_ids
        assert reloaded.decode(reloaded(text).input_ids) == text
    assert (reloaded.eos_token, reloaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert reloaded.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(14))


def test_the_words_that_decide_an_answer_are_single_tokens(tokenizer):
    for word in (" red", " green", " blue", " yellow", " yes", " no"):
        assert len(tokenizer(word).input_ids) == 1


def test_an_answer_letter_is_the_token_of_its_option(tokenizer):
    option, answer = tokenizer("\nB. green").input_ids, tokenizer("<answer>B</answer>").input_ids
    assert tokenizer.decode([option[1]]) == "B" and option[1] in answer


def test_configured_ids_are_the_tokenizers(folder, model, processor):
    ids = dict(zip(SPECIAL_TOKENS, range(14), strict=True))
    assert model.config.image_token_id == processor.image_token_id == ids["<|image_pad|>"]
    assert model.config.video_token_id == processor.video_token_id == ids["<|video_pad|>"]
    assert model.config.vision_start_token_id == ids["<|vision_start|>"]
    assert model.config.text_config.vocab_size == len(processor.tokenizer) == 384
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [processor.tokenizer.eos_token_id, ids["<|endoftext|>"]] == [2, 0]
    assert generation["pad_token_id"] == processor.tokenizer.pad_token_id == 0


def test_chat_template_writes_turns_and_media(processor):
    assert processor.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Which color appears first?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]},
        {"role": "assistant", "content": "So."},
    ]
    assert processor.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Why?<|im_end|>\n"
        "<|im_start|>assistant\nSo.<|im_end|>\n"
    )


def test_processor_expands_a_clip_to_one_token_per_merged_patch(batch, model):
    # 8 frames make 4 temporal patches; 56 / 14 = 4 patches a side; 2 x 2 patches merge into one token.
    assert batch["video_grid_thw"].tolist() == [[4, 4, 4]]
    assert (batch["input_ids"] == model.config.video_token_id).sum() == 4 * 4 * 4 // 4
    assert batch["pixel_values_videos"].shape == (64, 3 * 2 * 14 * 14)
    # Every second frame at 8 per second: a temporal patch of two lasts half a second.
    assert float(batch["second_per_grid_ts"][0]) == pytest.approx(0.5)


def test_processor_expands_an_image(processor, model):
    from PIL import Image

    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(message, tokenize=False)
    encoded = processor(text=[text], images=[Image.new("RGB", (84, 56))], return_tensors="pt")
    assert encoded["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert (encoded["input_ids"] == model.config.image_token_id).sum() == 4 * 6 // 4


def test_an_untrained_model_is_about_as_good_as_a_uniform_guess(batch, model):
    output = model(**batch, labels=batch["input_ids"])
    assert output.logits.shape == (1, batch["input_ids"].shape[1], 384)
    # The final norm gives hidden values of size 1, so logits have a standard deviation of 0.06 * sqrt(128) = 0.68;
    # normal logits cost half their variance, 0.23, over ln(384) = 5.95, and few tokens scatter about that.
    assert output.loss.item() == pytest.approx(math.log(384) + 0.23, abs=0.5)
    output.loss.backward()
    gradients = [weight.grad for weight in model.parameters()]
    model.zero_grad()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_the_answer_depends_on_the_video(batch, model):
    with torch.no_grad():
        seen = model(**batch).logits[0, -1]
        inverted = batch | {"pixel_values_videos": -batch["pixel_values_videos"]}
        assert (seen - model(**inverted).logits[0, -1]).abs().max() > 1e-3


def test_other_vision_sizes(tmp_path, batch):
    from transformers import Qwen2_5_VLForConditionalGeneration

    folder = write_tiny_model(tmp_path / "other", depth=3, fullatt_block_indexes=[1], window_size=28)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    visual = model.model.visual
    assert (len(visual.blocks), visual.fullatt_block_indexes, visual.window_size) == (3, [1], 28)
    with torch.no_grad():
        features = model.model.get_video_features(batch["pixel_values_videos"], batch["video_grid_thw"])
    assert features.pooler_output[0].shape == (16, 128)


def test_same_arguments_keep_the_folder_and_another_seed_replaces_it(tmp_path):
    weights = write_tiny_model(tmp_path / "model", seed=1) / "model.safetensors"
    written, content = weights.stat().st_mtime_ns, weights.read_bytes()
    write_tiny_model(tmp_path / "model", seed=1)
    assert weights.stat().st_mtime_ns == written
    write_tiny_model(tmp_path / "model", seed=2)
    assert weights.read_bytes() != content
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_too_little_text_for_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="yield only 271 tokens of 300"):
        build_tokenizer(["aa"], 300)
