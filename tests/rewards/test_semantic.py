from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rewards import AccuracyReward, FormatReward, SemanticReward
from rewards.base import RewardError
from rewards.image_text_encoder import ImageTextEncoder
from rewards.semantic import as_bytes, consistency, reasoning_span, uniform_indices
from rewards.suite import RewardSuite
from tests.performance.random_siglip import TEXT_LENGTH, WORDS, write_tiny_siglip, write_tiny_siglip2

RIGHT, WRONG = "<answer>A</answer>", "<answer>B</answer>"


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return str(write_tiny_siglip(tmp_path_factory.mktemp("siglip") / "one"))


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory):
    return str(write_tiny_siglip2(tmp_path_factory.mktemp("siglip") / "two"))


@pytest.fixture
def group(make_group):
    """Builds a group of given completions on random frames, or on those given."""

    def build(completions, frames=None, seed=0, record_id="7"):
        if frames is None:
            frames = torch.randint(0, 256, (4, 3, 20, 24), generator=torch.Generator().manual_seed(seed))
        return replace(
            make_group("A" * len(completions), record_id=record_id),
            completions=tuple(completions),
            frames=frames.to(torch.uint8),
        )

    return build


def think(reasoning, answer=RIGHT):
    return f"<think>{reasoning}</think>{answer}"


def count_encodings(reward):
    """How many images and texts pass through the towers from now on."""
    counts = {"images": 0, "texts": 0}

    def count(name, key):
        def hook(module, args, kwargs):
            counts[name] += len(kwargs[key])

        return hook

    model = reward.encoder.model
    model.vision_model.register_forward_pre_hook(count("images", "pixel_values"), with_kwargs=True)
    model.text_model.register_forward_pre_hook(count("texts", "input_ids"), with_kwargs=True)
    return counts


def fix_vectors(reward, image_vectors, text_vectors):
    """Put stated vectors in the place of the towers: one list per frame of the clip, one list per text."""
    reward.encoder.encode_images = lambda images: torch.tensor(image_vectors)
    reward.encoder.encode_texts = lambda texts: torch.tensor([text_vectors[text] for text in texts])


@pytest.mark.parametrize(
    ("completion", "span"),
    [
        ("<think>It asks who. A man runs. He falls.</think><answer>A</answer>", "A man runs. He falls."),
        ("<think>no stop at all</think><answer>A</answer>", "no stop at all"),
        ("<think>One sentence.</think><answer>A</answer>", ""),
        ("<think> </think><answer>A</answer>", ""),
        ("It asks who. A man runs.", "It asks who. A man runs."),  # no think element: the whole completion
        ("<think>It asks who. A man", "<think>It asks who. A man"),  # nor an open one
        ("<think>About 3.5 m. A man runs.</think>", "5 m. A man runs."),  # any "." counts, as published
    ],
)
def test_span_starts_after_the_first_full_stop_of_the_reasoning(completion, span):
    assert reasoning_span(completion) == span


def test_frames_are_chosen_from_the_middles_of_equal_stretches():
    # Ten frames in four stretches of 2.5: middles at 1.25, 3.75, 6.25 and 8.75.
    assert uniform_indices(10, 4) == [1, 3, 6, 8]
    assert uniform_indices(16, 1) == [8]
    assert uniform_indices(16, 16) == list(range(16))
    assert uniform_indices(3, 16) == [0, 1, 2]


def test_consistency_is_the_clipped_scaled_cosine():
    text = torch.tensor([1.0, 0.0])
    assert consistency(text, torch.tensor([[0.28, 0.96]]), scale=2.0) == pytest.approx(0.56)  # 2 * 0.28
    assert consistency(text, torch.tensor([[0.6, 0.8]]), scale=2.0) == 1.0  # 2 * 0.6 = 1.2, at most 1
    assert consistency(text, torch.tensor([[0.6, 0.8]]), scale=1.0) == pytest.approx(0.6)
    assert consistency(text, torch.tensor([[-0.6, 0.8]]), scale=2.0) == 0.0


def test_the_variants_differ_in_where_they_average(siglip, group):
    frames = torch.zeros(2, 3, 8, 8)
    # Frames at [1, 0] and [0.28, 0.96], a text at [0.28, 0.96]: cosines 0.28 and 1.
    vectors, texts = [[1.0, 0.0], [0.28, 0.96]], {"seen": [0.28, 0.96]}
    scores = {}
    for variant in ("paper", "code"):
        reward = SemanticReward(model_name_or_path=siglip, variant=variant, gate=None)
        fix_vectors(reward, vectors, texts)
        scores[variant] = reward.score(group([think("It asks.seen")], frames), {})[0]
    # Per frame 2 * 0.28 = 0.56 and 2 * 1, at most 1; their mean is 1.56 / 2.
    assert scores["code"] == pytest.approx(0.78)
    # The mean vector is [0.64, 0.48] of length 0.8, so [0.8, 0.6]; its cosine is 0.28 * 0.8 + 0.96 * 0.6 = 0.8.
    assert scores["paper"] == 1.0
    low = SemanticReward(model_name_or_path=siglip, scale=0.5, gate=None)
    fix_vectors(low, vectors, texts)
    assert low.score(group([think("It asks.seen")], frames), {})[0] == pytest.approx(0.4)  # 0.5 * 0.8


def test_real_towers_give_what_their_model_gives(siglip, group):
    reward = SemanticReward(model_name_or_path=siglip, variant="code", gate=None, scale=0.7)
    given = group([think("It asks. the red ball"), think("a blue ball moves to the left")])
    model, processor = reward.encoder.model, reward.encoder.processor
    pixels = processor.image_processor(list(given.frames), return_tensors="pt")["pixel_values"]
    ids = [[10, 4, 7, *[1] * 5], [3, 5, 7, 8, 9, 10, 11, 1]]  # places in WORDS, padded with 1 to the tower's 8
    with torch.no_grad():
        outputs = model(input_ids=torch.tensor(ids), pixel_values=pixels)
    cosines = outputs.text_embeds @ outputs.image_embeds.T  # [G, F]
    expected = (0.7 * cosines.clamp(min=0)).clamp(max=1).mean(dim=1)
    assert reward.score(given, {}) == pytest.approx(expected.tolist(), abs=1e-6)
    assert expected.std() > 0.001  # the texts are told apart


@pytest.mark.parametrize(("scores", "images", "texts"), [([1, 1, 1], 8, 6), ([0, 0.1, 1], 8, 4), ([0, 0, 0], 0, 0)])
def test_a_group_costs_f_plus_g_encodings_where_its_gate_is_open(siglip, group, scores, images, texts):
    reward = SemanticReward(model_name_or_path=siglip)
    counts = count_encodings(reward)
    words = ["red", "blue", "green", "ball", "moves", "left"]
    groups = [group([think(f"It asks. {word}") for word in words[start : start + 3]], seed=start) for start in (0, 3)]
    rewards = [reward.score(one, {"accuracy": scores}) for one in groups]
    # Two groups of F = 4 and G = 3: 2 * 4 images and 2 * 3 texts, not 2 * 12 of each.
    assert counts == {"images": images, "texts": texts}
    closed = [score == 0 for score in scores]
    assert all(value == 0 for row in rewards for value, shut in zip(row, closed, strict=True) if shut)


def test_a_group_passes_each_tower_in_one_batch(siglip, group):
    reward = SemanticReward(model_name_or_path=siglip, gate=None)
    calls = []
    for tower in (reward.encoder.model.vision_model, reward.encoder.model.text_model):
        tower.register_forward_pre_hook(lambda module, args: calls.append(type(module).__name__))
    reward.score(group([think("It asks. red"), think("It asks. blue")]), {})
    assert len(calls) == len(set(calls)) == 2


def test_equal_texts_and_equal_clips_are_encoded_once(siglip, group):
    reward = SemanticReward(model_name_or_path=siglip, gate=None)
    counts = count_encodings(reward)
    same = [think("It asks. red"), think("Who? Then. red"), think("It asks. red", WRONG)]
    reward.score(group(same), {})
    assert counts == {"images": 4, "texts": 1}
    reward.score(group(same, record_id="8"), {})
    assert counts == {"images": 4, "texts": 2}


def test_batches_do_not_change_scores(siglip, group):
    given = group([think(f"It asks. {word} ball") for word in ("red", "blue", "green", "left")])
    scores = [
        SemanticReward(model_name_or_path=siglip, gate=None, batch_size=size).score(given, {}) for size in (3, 64)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_clips_are_cached_and_the_least_recent_leaves_first(siglip, group):
    reward = SemanticReward(model_name_or_path=siglip, gate=None, cache_size=2)
    counts = count_encodings(reward)
    clips = [group([think("It asks. red")], seed=seed) for seed in (1, 2, 3)]
    encoded = []
    for index in (0, 0, 1, 0, 2, 0, 1):
        before = counts["images"]
        reward.score(clips[index], {})
        encoded.append(counts["images"] - before)
    # Two fit: the third clip drives out the second, which was used before the first.
    assert encoded == [4, 0, 4, 0, 4, 0, 4]


def test_without_a_cache_every_step_encodes(siglip, group):
    reward = SemanticReward(model_name_or_path=siglip, gate=None, cache_size=0)
    counts = count_encodings(reward)
    scores = [reward.score(group([think("It asks. red")]), {}) for _ in range(2)]
    assert counts["images"] == 8
    assert scores[0] == scores[1]


def test_other_frames_under_the_same_record_are_another_clip(siglip, group):
    reward = SemanticReward(model_name_or_path=siglip, gate=None, scale=0.5)
    red, green = torch.zeros(2, 4, 3, 8, 8)
    red[:, 0] = green[:, 1] = 255
    # An image's vector is its red and its green; the text stands at red.
    reward.encoder.encode_images = lambda images: torch.stack([image[:2, 0, 0] / 255 for image in images])
    reward.encoder.encode_texts = lambda texts: torch.tensor([[1.0, 0.0]] * len(texts))
    scores = [reward.score(group([think("It asks. red")], frames), {})[0] for frames in (red, green, red)]
    assert scores == [0.5, 0.0, 0.5]


def test_num_frames_limits_what_is_encoded(siglip, group):
    reward = SemanticReward(model_name_or_path=siglip, gate=None, num_frames=2)
    counts = count_encodings(reward)
    reward.score(group([think("It asks. red")]), {})
    assert counts == {"images": 2, "texts": 1}


@pytest.mark.parametrize("frames", [torch.full((1, 3, 8, 8), 9), torch.full((2, 3, 40, 12), 9)])
def test_images_and_other_sizes_are_read(siglip, siglip2, group, frames):
    for folder in (siglip, siglip2):
        reward = SemanticReward(model_name_or_path=folder, gate=None)
        score = reward.score(group([think("It asks. red")], frames), {})[0]
        assert 0 <= score <= 1


def test_nothing_seen_and_nothing_said_score_zero_without_the_encoder(make_group, group):
    reward = SemanticReward(gate=None)  # a name that was never downloaded
    assert reward.score(make_group("AA"), {}) == [0.0, 0.0]  # no frames
    assert reward.score(group([think("One sentence.")]), {}) == [0.0]


def test_the_code_variant_compares_an_empty_text(siglip, group):
    reward = SemanticReward(model_name_or_path=siglip, variant="code", gate=None)
    counts = count_encodings(reward)
    reward.score(group([think("One sentence.")]), {})
    assert counts == {"images": 4, "texts": 1}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_colors_reach_the_image_tower_as_they_are(siglip, dtype):
    encoder = ImageTextEncoder(siglip)
    colors = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 100, 50]])
    frames = colors[:, :, None, None].expand(-1, -1, 20, 24).to(dtype)
    pixels = encoder.image_inputs(list(as_bytes(frames)))["pixel_values"]
    # SigLIP's normalization is (v / 255 - 0.5) / 0.5 = (2v - 255) / 255: 200 gives 145 / 255, 100 gives -55 / 255.
    expected = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [145 / 255, -55 / 255, -155 / 255]])
    torch.testing.assert_close(pixels, expected[:, :, None, None].expand(-1, -1, 16, 16), atol=1e-6, rtol=0)


def test_every_byte_reaches_the_image_tower_where_no_resizing_is_needed(siglip):
    frames = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels = ImageTextEncoder(siglip).image_inputs(list(frames))["pixel_values"]
    assert torch.equal((pixels * 127.5 + 127.5).round().to(torch.uint8), frames)


def test_three_rows_of_pixels_are_not_taken_for_channels(siglip):
    frame = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 5, 3)
    pixels = ImageTextEncoder(siglip).image_inputs([frame])["pixel_values"]
    assert pixels.mean(dim=(0, 2, 3)).tolist() == pytest.approx([1, -1, -1])


def test_float_frames_keep_their_values():
    frames = torch.arange(256.0)[:, None, None, None].expand(-1, 3, 2, 2)
    assert torch.equal(as_bytes(frames), frames.to(torch.uint8))
    assert as_bytes(torch.zeros(1, 3, 2, 2)).sum() == 0


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.rand(1, 3, 2, 2), "floats must be whole numbers"),
        (torch.ones(1, 3, 2, 2), "Multiply frames of the 0 to 1 scale"),
        (torch.full((1, 3, 2, 2), 256.0), "floats must be whole numbers"),
        (torch.full((1, 3, 2, 2), math.nan), "floats must be whole numbers"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.int64), "give uint8"),
        (torch.zeros(3, 2, 2, dtype=torch.uint8), r"must be \[F, 3, H, W\]"),
        (torch.zeros(0, 3, 2, 2, dtype=torch.uint8), "F >= 1"),
    ],
)
def test_frames_of_unclear_scale_are_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        as_bytes(frames)


def test_refused_frames_name_their_record_only(siglip, group):
    odd = replace(group([think("It asks. red")], record_id="13"), frames=torch.rand(1, 3, 8, 8))
    suite = RewardSuite([SemanticReward(model_name_or_path=siglip, gate=None)])
    with pytest.raises(RewardError, match=r"'semantic' failed on problem_id 13: UserError: frames are torch\.float32"):
        suite.score([group([think("It asks. red")]), odd])


def test_texts_are_cut_to_the_tower_or_to_max_tokens(siglip):
    words = " ".join(WORDS[3:]) + " red"  # ten words, of which eight are read
    ids = list(range(3, 3 + TEXT_LENGTH))
    for encoder, text, expected in (
        (ImageTextEncoder(siglip), words, ids),
        (ImageTextEncoder(siglip, max_tokens=3), words, [*ids[:3], *[1] * 5]),
        (ImageTextEncoder(siglip), "Red BALL", [4, 7, *[1] * 6]),  # lower case, as the towers were trained
    ):
        assert encoder.text_inputs([text])["input_ids"].tolist() == [expected]


def encoded(encoder):
    """Vectors of two random frames and of a text."""
    frames = torch.randint(0, 256, (2, 3, 20, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return torch.cat([encoder.encode_images(list(frames)), encoder.encode_texts(["the red ball"])])


def test_the_encoder_keeps_its_dtype_under_autocast(siglip):
    plain = encoded(ImageTextEncoder(siglip))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoded(ImageTextEncoder(siglip)), plain)
    rounded = encoded(ImageTextEncoder(siglip, dtype="bfloat16"))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - plain).abs().max() < 0.02


def test_the_encoder_is_frozen(siglip):
    encoder = ImageTextEncoder(siglip)
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not encoded(encoder).requires_grad


def test_loading_leaves_the_random_numbers_of_the_run_alone(siglip, group):
    state = torch.get_rng_state()
    SemanticReward(model_name_or_path=siglip, gate=None).score(group([think("It asks. red")]), {})
    assert torch.equal(state, torch.get_rng_state())


def test_the_suite_gates_and_weighs_it(siglip, group):
    semantic = SemanticReward(model_name_or_path=siglip, weight=0.5)
    fix_vectors(semantic, [[1.0, 0.0]] * 4, {"left": [0.28, 0.96], "red": [0.28, 0.96]})
    suite = RewardSuite([semantic, AccuracyReward(), FormatReward()])
    breakdown = suite.score([group([think("It asks. left"), think("It asks. red", WRONG)])])
    # Right: 0.5 * 2 * 0.28 + 1 + 1; wrong: the gate is closed and only the format counts.
    assert breakdown.total.tolist() == [pytest.approx([2.28, 1.0])]
    assert breakdown.components["semantic"].tolist() == [pytest.approx([0.56, 0.0])]


def test_a_missing_folder_is_reported_at_construction(tmp_path):
    with pytest.raises(ValueError, match=r"there is no config\.json in that folder\. Give the folder of a SigLIP"):
        SemanticReward(model_name_or_path=str(tmp_path / "nowhere"))


def test_another_kind_of_model_is_reported_at_construction(tiny_folder):
    with pytest.raises(ValueError, match="holds a 'qwen2_5_vl' model, which is not a two-tower image-text model"):
        SemanticReward(model_name_or_path=str(tiny_folder))


def test_a_folder_without_processor_is_reported_at_construction(siglip, tmp_path):
    shutil.copy(Path(siglip) / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"processor of .* cannot be read"):
        SemanticReward(model_name_or_path=str(tmp_path))


def test_a_folder_without_weights_is_reported_at_construction(siglip, tmp_path):
    folder = shutil.copytree(siglip, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ValueError, match="has no weights"):
        SemanticReward(model_name_or_path=str(folder))


def test_a_missing_sentencepiece_is_reported_at_construction(siglip, monkeypatch):
    def from_pretrained(folder):
        raise ImportError("SiglipTokenizer requires the SentencePiece library")

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", from_pretrained)
    with pytest.raises(ValueError, match=r"requires the SentencePiece library \(pip install sentencepiece\)"):
        SemanticReward(model_name_or_path=siglip)


def test_an_unknown_name_is_reported_on_first_use(group, monkeypatch):
    def from_pretrained(name):
        raise OSError("no such repository")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", from_pretrained)
    reward = SemanticReward(model_name_or_path="nobody/nothing", gate=None)
    with pytest.raises(ValueError, match="neither a folder here nor a name that could be downloaded: no such repos"):
        reward.score(group([think("It asks. red")]), {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.0}, "scale 0.0; it must be finite and > 0"),
        ({"scale": -1.0}, "scale -1.0; it must be finite and > 0"),
        ({"scale": math.nan}, "scale nan; it must be finite and > 0"),
        ({"variant": "mine"}, "variant is 'mine'; allowed are 'paper', 'code'"),
        ({"num_frames": 0}, "num_frames 0; it must be >= 1"),
        ({"cache_size": -1}, "cache_size -1; it must be >= 0"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be >= 1"),
        ({"max_tokens": 9}, "max_tokens is 9, but the text tower of .* reads 8"),
        ({"batch_size": 0}, "batch_size is 0; it must be >= 1"),
        ({"dtype": "int8"}, "dtype is 'int8'; allowed are 'float32', 'bfloat16', 'float16'"),
        ({"device": "moon"}, "device is 'moon'; give auto, cpu, cuda or cuda:N"),
    ],
)
def test_settings_out_of_range_are_refused(siglip, settings, message):
    with pytest.raises(ValueError, match=message):
        SemanticReward(model_name_or_path=siglip, **settings)


def test_preparing_reads_the_weights(siglip):
    reward = SemanticReward(model_name_or_path=siglip)
    assert "model" not in vars(reward.encoder)
    reward.prepare()
    assert "model" in vars(reward.encoder)
