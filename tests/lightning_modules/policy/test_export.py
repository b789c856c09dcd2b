"""Exported folders compute what was trained, with adapters merged or kept, from a 4-bit base too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from lightning_modules.policy.adapters import AdapterConfig, adapter_parameters
from lightning_modules.policy.export import write_pretrained
from lightning_modules.policy.loading import load_policy

IDS = torch.arange(20, 60).view(2, 20)
LORA = AdapterConfig(r=4, alpha=8)


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def with_adapters(folder, **options):
    """A policy whose adapters do something."""
    policy = load_policy(str(folder), lora=LORA, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adapter_parameters(policy.model):  # in place: of the type that loading gave them
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def reloaded(path):
    return AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)


def test_whole_weights_come_back_bit_for_bit(tiny_folder, tmp_path):
    policy = load_policy(str(tiny_folder))
    policy.model.model.language_model.norm.weight.data += 0.5
    # Gathered shards are copies: the tied head is a tensor of its own.
    gathered = {name: value.clone() for name, value in policy.model.state_dict().items()}
    write_pretrained(policy, tmp_path, gathered)
    assert torch.equal(logits(reloaded(tmp_path)), logits(policy.model))
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(tiny_folder / "model.safetensors").keys()


def test_merged_adapters_leave_a_plain_model(tiny_folder, tmp_path):
    policy = with_adapters(tiny_folder)
    write_pretrained(policy, tmp_path)
    expected = logits(policy.model)
    assert (expected - logits(reloaded(tiny_folder))).abs().max() > 0.1
    torch.testing.assert_close(logits(reloaded(tmp_path)), expected, rtol=1e-4, atol=1e-4)
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(tiny_folder / "model.safetensors").keys()
    exported, base = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tiny_folder))
    assert exported["architectures"] == base["architectures"] and exported["dtype"] == "float32"
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == policy.model.generation_config.eos_token_id
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.get_vocab() == policy.tokenizer.get_vocab()


def test_kept_adapters_load_onto_their_base(tiny_folder, tmp_path):
    policy = with_adapters(tiny_folder)
    write_pretrained(policy, tmp_path, adapters="keep")
    assert not (tmp_path / "model.safetensors").exists()
    torch.testing.assert_close(logits(reloaded(tmp_path)), logits(policy.model), rtol=1e-5, atol=1e-5)
    assert Path(json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]) == tiny_folder


def test_adapters_of_a_quantized_base_merge_into_the_weights_it_was_made_from(tiny_folder, tmp_path):
    policy = with_adapters(tiny_folder, quantization="nf4")
    write_pretrained(policy, tmp_path)
    exported = reloaded(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    torch.testing.assert_close(logits(exported), logits(with_adapters(tiny_folder).model), rtol=1e-4, atol=1e-4)
    # 4 bits cost precision, but far less than the adapters change.
    error = (logits(exported) - logits(policy.model)).norm()
    assert error < 0.3 * (logits(exported) - logits(reloaded(tiny_folder))).norm()


@pytest.mark.parametrize("adapters", ["merge", "keep"])
def test_half_precision_stays(tiny_folder, tmp_path, adapters):
    policy = with_adapters(tiny_folder, dtype="bfloat16")
    write_pretrained(policy, tmp_path, adapters=adapters)
    (file,) = tmp_path.glob("*.safetensors")
    kinds = {value.dtype for value in load_file(file).values()}
    assert kinds == ({torch.bfloat16} if adapters == "merge" else {torch.float32})
