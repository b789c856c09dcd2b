"""The two VideoRFT configurations: rewards against numbers worked out by hand, and a step of each on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

import cli
from rewards import Reward
from rewards.answer_format import wrap_answer, wrap_think
from rewards.suite import RewardSuite
from rewards.types import ProblemType, RewardInput
from tests.performance.random_siglip import write_tiny_siglip

CONFIGS = Path(__file__).parent.parent / "configs"
PAPER = CONFIGS / "grpo" / "videorft_qwen2_5_vl_7b.yaml"
CODE = CONFIGS / "grpo" / "videorft_qwen2_5_vl_7b_code.yaml"
PLAIN = CONFIGS / "grpo" / "qwen2_5_vl_7b.yaml"
CPU = CONFIGS / "trainer" / "cpu.yaml"

FRAME_VECTORS = [[1.0, 0.0], [0.28, 0.96]]
TEXT_VECTORS = {"Seen.": [0.28, 0.96], "Turned.": [0.96, -0.28], "Opposite.": [-0.6, -0.8]}
"""Cosines with the two frames: Seen 0.28 and 1; Turned 0.96 and 0; Opposite -0.6 and -0.936. The frames' mean,
[0.64, 0.48], is [0.8, 0.6] at unit length: cosines 0.8, 0.6 and -0.96."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # restored after the test, whatever Lightning wrote there


def suite_of(path, frame_vectors=FRAME_VECTORS):
    """The suite that a file describes, with stated vectors in the place of the towers."""
    parser = ArgumentParser()
    parser.add_argument("--rewards", type=list[Reward])
    given = {"rewards": yaml.safe_load(path.read_text())["model"]["init_args"]["rewards"]}
    suite = RewardSuite(parser.instantiate_classes(parser.parse_object(given)).rewards)
    encoder = suite.rewards["semantic"].encoder
    encoder.encode_images = lambda images: torch.tensor(frame_vectors)
    encoder.encode_texts = lambda texts: torch.tensor([TEXT_VECTORS[text] for text in texts])
    return suite


def group(*members, frames=2):
    """Members are (text after the first full stop, answer, tokens, well formed); "A" is right."""
    return RewardInput(
        record_id="7",
        problem_type=ProblemType.MULTIPLE_CHOICE,
        problem="Which one?",
        solution=wrap_answer("A"),
        completions=tuple(
            wrap_think(f"It asks which. {text}") + wrap_answer(answer) + ("" if well_formed else " Bye.")
            for text, answer, _, well_formed in members
        ),
        completion_tokens=tuple(tokens for _, _, tokens, _ in members),
        truncated=(False,) * len(members),
        frames=torch.zeros(frames, 3, 8, 8, dtype=torch.uint8),
    )


MEMBERS = (
    ("Seen.", "A", 400, True),
    ("Opposite.", "A", 319, True),
    ("Seen.", "B", 400, True),  # wrong: neither the semantic reward nor the bonus
    ("Turned.", "A", 512, False),  # right, but something follows the answer
)


def test_the_papers_reward():
    breakdown = suite_of(PAPER).score([group(*MEMBERS)])
    # accuracy + format + semantic: 1 + 1 + min(1, 2 * 0.8), 1 + 1 + 0, 0 + 1 + 0, 1 + 0 + min(1, 2 * 0.6)
    assert breakdown.total.tolist() == [pytest.approx([3.0, 2.0, 1.0, 2.0])]
    assert list(breakdown.components) == ["accuracy", "format", "semantic"]


def test_the_papers_reward_below_its_ceiling():
    # One frame at [1, 0], as for an image: cosines 0.28 and -0.6.
    breakdown = suite_of(PAPER, [[1.0, 0.0]]).score([group(*MEMBERS[:3], frames=1)])
    # 1 + 1 + 2 * 0.28, 1 + 1 + 0, 0 + 1 + 0
    assert breakdown.total.tolist() == [pytest.approx([2.56, 2.0, 1.0])]


def test_the_released_codes_reward():
    breakdown = suite_of(CODE).score([group(*MEMBERS)])
    # accuracy + format + semantic + length, three being right:
    #   1 + 1 + (min(1, 0.56) + 1) / 2 + 0.2     400 tokens
    #   1 + 1 + 0 + 0                            319 tokens are too few
    #   0 + 1 + 0 + 0                            wrong
    #   1 + 0 + (min(1, 1.92) + 0) / 2 + 0.2     512 tokens just earn the bonus
    assert breakdown.total.tolist() == [pytest.approx([2.98, 2.0, 1.0, 1.7])]
    assert list(breakdown.components) == ["accuracy", "format", "semantic", "length"]


def test_the_released_code_gives_no_bonus_to_a_single_right_answer():
    members = [("Seen.", "A", 400, True), ("Seen.", "B", 400, True)]
    # 1 + 1 + (0.56 + 1) / 2, without the 0.2; 0 + 1
    assert suite_of(CODE).score([group(*members)]).total.tolist() == [pytest.approx([2.78, 1.0])]


@pytest.mark.parametrize("path", [PAPER, CODE], ids=["paper", "code"])
def test_nothing_but_rewards_and_folder_differ_from_the_plain_run(path):
    given, plain = (yaml.safe_load(file.read_text()) for file in (path, PLAIN))
    extra = given["model"]["init_args"]["rewards"][2:]
    assert [reward["class_path"] for reward in extra][:1] == ["rewards.SemanticReward"]
    del given["model"]["init_args"]["rewards"][2:]
    assert given["trainer"].pop("default_root_dir") == f"runs/grpo_{path.stem}"
    del plain["trainer"]["default_root_dir"]
    assert given == plain


@pytest.mark.parametrize("path", [PAPER, CODE], ids=["paper", "code"])
def test_a_step_measures_and_keeps_the_encoder_out_of_checkpoint_and_optimizer(
    path, tiny_folder, mixed_data, tmp_path, monkeypatch
):
    siglip = write_tiny_siglip(tmp_path / "siglip")
    config = yaml.safe_load(path.read_text())
    semantic = config["model"]["init_args"]["rewards"][2]["init_args"]
    semantic.update(model_name_or_path=str(siglip), gate="format")
    # Untrained models follow no format, so the gate is opened by a stated score.
    monkeypatch.setattr("rewards.format.format_reward", lambda completion: 1.0)
    config["trainer"]["callbacks"] = [
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"dirpath": str(tmp_path / "kept"), "every_n_train_steps": 1},
        }
    ]
    changed = tmp_path / "run.yaml"
    changed.write_text(yaml.safe_dump(config))
    small = "{num_frames: 4, min_pixels: 784, max_pixels: 3136, image_max_pixels: 3136}"
    run = cli.lightning_cli(
        [
            "fit",
            f"--config={changed}",
            f"--config={CPU}",
            f"--model.init_args.model_name_or_path={tiny_folder}",
            "--model.init_args.group_size=2",
            "--model.init_args.sampling.max_new_tokens=6",
            f"--data.init_args.data_root={mixed_data.parent}",
            f"--data.init_args.train_files=[{mixed_data}]",
            f"--data.init_args.train_frames={small}",
            "--data.init_args.num_workers=0",
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.max_steps=2",
            "--trainer.limit_val_batches=0",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
        ]
    )
    encoder = run.model.suite.rewards["semantic"].encoder
    assert "model" in vars(encoder)  # the towers were read, so there was something to measure
    towers = {id(parameter) for parameter in encoder.model.parameters()}
    trained = {id(value) for entry in run.trainer.optimizers[0].param_groups for value in entry["params"]}
    assert not towers & trained
    assert not towers & {id(parameter) for parameter in run.model.parameters()}
    (file,) = (tmp_path / "kept").glob("*.ckpt")
    saved = torch.load(file, weights_only=False)["state_dict"]
    assert saved
    assert all(name.startswith("policy.") for name in saved)
