"""Short real runs of the modules on the mixed data, for the module tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from datamodules.prompts import PromptTemplate
from datamodules.video.frame_sampling import FrameConfig
from datamodules.video_datamodule import VideoDataModule
from lightning_modules.grpo_module import GRPOModule
from lightning_modules.pictures.curves import read_scalars
from lightning_modules.rollouts.types import SamplingConfig
from lightning_modules.sft_module import SFTModule
from lightning_modules.training.optim import OptimizerConfig
from rewards import AccuracyReward, FormatReward, Reward

PROFILE = FrameConfig(
    num_frames=4, min_pixels=28 * 28, max_pixels=56 * 56, image_min_pixels=28 * 28, image_max_pixels=56 * 56
)
TEMPLATE = PromptTemplate(
    question=" {problem}{options}", options_prefix=" ", option_separator=" ", instruction="", type_sentences={}
)


class LetterReward(Reward):
    """Share of the letter e: a reward that untrained models already differ in."""

    name = "letter"

    def score(self, group, raw):
        return [text.count("e") / (1 + len(text)) for text in group.completions]


def data_module(model: Path, data: Path, *, train_format: str, **options: Any) -> VideoDataModule:
    arguments = {
        "train_files": [str(data)],
        "val_files": [str(data)],
        "train_format": train_format,
        "prompt": TEMPLATE,
        "train_frames": PROFILE,
        "eval_frames": PROFILE,
        "batch_size": 4,
        "eval_batch_size": 6,
        "num_workers": 0,
        **options,
    }
    return VideoDataModule(str(model), str(data.parent), **arguments)


def trainer(folder: Path, **options: Any) -> L.Trainer:
    arguments = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": TensorBoardLogger(folder, name="", version="logs"),
        "default_root_dir": folder,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        **options,
    }
    return L.Trainer(**arguments)


def sft_module(model: Path, **options: Any) -> SFTModule:
    arguments = {
        "optimizer": OptimizerConfig(learning_rate=2e-3, schedule="constant"),
        "evaluation": SamplingConfig(max_new_tokens=8, greedy=True),
        **options,
    }
    return SFTModule(model_name_or_path=str(model), **arguments)


def grpo_module(model: Path, **options: Any) -> GRPOModule:
    arguments = {
        "rewards": [LetterReward(), FormatReward(weight=0.5), AccuracyReward()],
        "group_size": 4,
        "sampling": SamplingConfig(max_new_tokens=12),
        "evaluation": SamplingConfig(max_new_tokens=8, greedy=True),
        "optimizer": OptimizerConfig(learning_rate=1e-3, schedule="constant"),
        **options,
    }
    return GRPOModule(model_name_or_path=str(model), **arguments)


def scalars(folder: Path) -> dict[str, list[float]]:
    return {tag: [value for _, value in curve] for tag, curve in read_scalars(folder / "logs").items()}
