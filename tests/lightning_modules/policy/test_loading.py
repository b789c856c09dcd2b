"""Checkpoints of every family and of transformers 4 and 5 compute what their own model computes."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from lightning_modules.policy.family import ModelFamily
from lightning_modules.policy.loading import load_policy, supported_model_type

TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
    "num_key_value_heads", "max_position_embeddings", "initializer_range", "bos_token_id", "eos_token_id",
)  # fmt: skip
COMPLETIONS = [torch.tensor([30, 41, 52, 2]), torch.tensor([61, 2])]


def names_of_4(name):
    """As published: no `language_model` in a name."""
    return name


def names_of_5(name):
    """As the modules of transformers 5 (and from 4.52 on) are called."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def config_of_4(config):
    """One level for the text model, `rope_scaling` beside `rope_theta`, `torch_dtype`."""
    text = config["text_config"]
    rope = text["rope_parameters"]
    return {
        **{name: text[name] for name in TEXT_FIELDS},
        "architectures": config["architectures"],
        "model_type": config["model_type"],
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "transformers_version": "4.51.3",
        "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings")),
        **{name: config[name] for name in config if name.endswith("_token_id") and name not in TEXT_FIELDS},
        "vision_config": {**config["vision_config"], "in_chans": 3, "spatial_patch_size": 14},
    }


def rewritten(folder, output, *, rename, config, head=False):
    """A copy with other names of weights in two files, and another config."""
    shutil.copytree(folder, output)
    whole = output / "model.safetensors"
    weights = {rename(name): value for name, value in load_file(whole).items()}
    if head:  # as 7B has: a parameter of its own, here with the embeddings' values
        weights["lm_head.weight"] = next(v for n, v in weights.items() if n.endswith("embed_tokens.weight")).clone()
    whole.unlink()
    files = {}
    for number, share in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in share}, output / file, metadata={"format": "pt"})
        files |= dict.fromkeys(share, file)
    (output / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    given = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(config(given) | ({"tie_word_embeddings": False} if head else {})))
    return output


def scores(folder, prompts):
    """Log-probabilities of completions after a video, an image and a text."""
    policy = load_policy(str(folder)).eval()
    with torch.no_grad():
        batch = policy.pack(policy.collate(prompts), [COMPLETIONS] * len(prompts))
        return policy.logprobs(batch, temperature=1.0).logprobs


@pytest.fixture(scope="module")
def tiny_qwen2_vl(tiny_folder, tmp_path_factory):
    """A Qwen2-VL with the tokenizer of the other tiny model."""
    folder = tmp_path_factory.mktemp("model") / "qwen2_vl"
    given = json.loads((tiny_folder / "config.json").read_text())
    text = {name: given["text_config"][name] for name in (*TEXT_FIELDS, "rope_parameters", "tie_word_embeddings")}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={"depth": 2, "embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2, "num_heads": 2},
        tie_word_embeddings=True,
        **{name: given[name] for name in given if name.endswith("_token_id")},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    other = AutoProcessor.from_pretrained(tiny_folder)
    Qwen2VLProcessor(
        image_processor=other.image_processor,
        tokenizer=other.tokenizer,
        video_processor=other.video_processor,
        chat_template=other.chat_template,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(mixed_prompts):
    by_kind = {prompt.record.data_type: prompt for prompt in mixed_prompts}
    assert len(by_kind) == 3
    return list(by_kind.values())


@pytest.mark.parametrize("family", ["tiny_folder", "tiny_qwen2_vl"])
@pytest.mark.parametrize(
    "layout",
    [
        {"rename": names_of_4, "config": config_of_4},
        {"rename": names_of_4, "config": config_of_4, "head": True},
        {"rename": names_of_5, "config": lambda config: config},
        {"rename": names_of_5, "config": config_of_4},
    ],
    ids=["4", "4 with a head", "5", "names of 5, config of 4"],
)
def test_layouts_of_transformers_4_and_5_give_the_same_numbers(family, layout, prompts, tmp_path, request):
    folder = request.getfixturevalue(family)
    names = load_file(folder / "model.safetensors").keys()
    assert "model.layers.0.mlp.up_proj.weight" in names and "visual.patch_embed.proj.weight" in names
    other = rewritten(folder, tmp_path / "other", **layout)
    assert torch.equal(scores(other, prompts), scores(folder, prompts))


def test_a_qwen2_vl_has_the_positions_of_transformers(tiny_qwen2_vl, prompts):
    policy = load_policy(str(tiny_qwen2_vl))
    batch = policy.collate([p for p in prompts if p.record.data_type != "video"])
    kinds = (batch.input_ids == policy.family.image_token_id).long()
    expected, _ = policy.model.model.get_rope_index(
        batch.input_ids, kinds, image_grid_thw=batch.vision.grid_thw, attention_mask=batch.attention_mask
    )
    kept = batch.attention_mask.bool()
    assert torch.equal(batch.position_ids[:, kept], expected[:, kept])
    assert torch.equal(batch.next_position, expected.masked_fill(~kept, -1).amax((0, 2)) + 1)


def test_a_qwen2_vl_counts_temporal_patches_whatever_their_seconds(tiny_qwen2_vl, prompts):
    (prompt,) = (p for p in prompts if p.record.data_type == "video")
    policy = load_policy(str(tiny_qwen2_vl))
    slow = replace(prompt, vision=replace(prompt.vision, seconds_per_patch=torch.tensor([3.0])))
    batch = policy.collate([slow])
    temporal = batch.position_ids[0, batch.input_ids == policy.family.video_token_id]
    assert int(prompt.vision.grid_thw[0, 0]) == 2
    assert (temporal - temporal[0]).tolist() == [0] * (len(temporal) // 2) + [1] * (len(temporal) // 2)


@pytest.mark.parametrize("family", ["tiny_folder", "tiny_qwen2_vl"])
def test_packed_completions_score_as_in_the_stock_model(family, prompts, request):
    policy = load_policy(str(request.getfixturevalue(family))).eval()
    assert isinstance(policy.family, ModelFamily)
    actual = scores(request.getfixturevalue(family), prompts)
    row = 0
    for prompt in prompts:
        for completion in COMPLETIONS:
            ids = torch.cat([prompt.input_ids, completion])[None]
            positions, _ = policy.family.positions(ids, torch.ones_like(ids), prompt.vision)
            with torch.no_grad():
                media = media_arguments(policy, prompt)
                logits = policy.model(input_ids=ids, position_ids=positions, use_cache=False, **media).logits
            expected = logits[0, -len(completion) - 1 : -1].log_softmax(-1).gather(1, completion[:, None])[:, 0]
            torch.testing.assert_close(actual[row, : len(completion)], expected, rtol=1e-5, atol=1e-5)
            row += 1


def media_arguments(policy, prompt):
    """Pixels as the processor would give them."""
    if prompt.vision is None:
        return {}
    kind = "video" if prompt.record.data_type == "video" else "image"
    pixels = policy.family._normalized(prompt.vision.patches, policy.model.model.visual)
    names = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}[kind]
    return dict(zip(names, (pixels, prompt.vision.grid_thw), strict=True))


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_folder, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.somewhere.else"] = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights .*1\.mlp\.up_proj.*would be random.* holds 1 weights"):
        load_policy(str(folder))


@pytest.mark.parametrize("model_type", ["qwen3_vl", "qwen2_5_omni", "llava"])
def test_other_families_are_refused_by_name(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=f"holds a '{model_type}' model; supported are 'qwen2_vl', 'qwen2_5_vl'"):
        supported_model_type(str(tmp_path))
