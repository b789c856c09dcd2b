import torch

from datamodules.collate import IGNORED_LABEL, PromptCollator, SFTCollator, SFTSample
from datamodules.types import EncodedPrompt


def prompt(*ids):
    return EncodedPrompt(record=None, input_ids=torch.tensor(ids), vision=None, frames=None)


def test_prompts_are_padded_on_the_left():
    batch = PromptCollator(pad_token_id=9)([prompt(1, 2, 3), prompt(4)])
    assert batch.input_ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.vision is None and len(batch) == 2


def test_only_assistant_tokens_carry_labels():
    samples = [
        SFTSample(prompt=prompt(1, 2), target_ids=torch.tensor([5, 6])),
        SFTSample(prompt=prompt(3), target_ids=torch.tensor([7])),
    ]
    batch = SFTCollator(pad_token_id=9)(samples)
    skip = IGNORED_LABEL
    assert batch.input_ids.tolist() == [[1, 2, 5, 6], [3, 7, 9, 9]]
    assert batch.labels.tolist() == [[skip, skip, 5, 6], [skip, 7, skip, skip]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_a_batch_moves_as_a_whole(mixed_prompts):
    batch = PromptCollator(pad_token_id=0)(mixed_prompts[:3]).to("meta")
    assert batch.input_ids.device.type == batch.vision.patches.device.type == "meta"
    assert batch.prompts[0].input_ids.device.type == "cpu"  # the records stay where they are
