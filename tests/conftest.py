"""A tiny Qwen2.5-VL of the real classes and generated clips, built once per run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules.encoding import PromptEncoder
from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.media import read_media
from datamodules.prompts import PromptTemplate
from datamodules.records import RecordFile
from datamodules.types import EncodedPrompt
from datamodules.video.frame_sampling import FrameConfig
from lightning_modules.policy.loading import load_policy
from lightning_modules.policy.policy import Policy
from lightning_modules.policy.tiny import write_tiny_model
from tests.datamodules.evaluation.benchmark_samples import write_benchmark_sample
from tests.datamodules.synthetic.mixed_dataset import write_mixed_dataset

torch.set_num_threads(1)

SMALL_PROFILE = FrameConfig(
    num_frames=4, min_pixels=28 * 28, max_pixels=56 * 56, image_min_pixels=28 * 28, image_max_pixels=56 * 56
)
DEMO_TEMPLATE = PromptTemplate(
    question=" {problem}{options}",
    options_prefix=" ",
    option_separator=" ",
    instruction="",
    type_sentences={},
    target_separator="",
)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folder with windowed and full vision attention, grouped-query attention and a tied head."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return write_tiny_model(folder, seed=0, depth=2, fullatt_block_indexes=[1], window_size=28)


@pytest.fixture(scope="session")
def mixed_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data file with videos, images and text-only records; its folder is the data root."""
    return write_mixed_dataset(tmp_path_factory.mktemp("data") / "mixed", seed=0, count=12)


@pytest.fixture(scope="session")
def benchmark_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data root with the tiny data sets of all benchmarks."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for benchmark in BENCHMARKS.values():
        write_benchmark_sample(folder, benchmark)
    return folder


@pytest.fixture
def tiny_policy(tiny_folder: Path) -> Policy:
    return load_policy(str(tiny_folder))


@pytest.fixture
def tiny_policy64(tiny_folder: Path) -> Policy:
    return load_policy(str(tiny_folder), dtype="float64")


@pytest.fixture(scope="session")
def encoder(tiny_folder: Path) -> PromptEncoder:
    from transformers import AutoTokenizer

    return PromptEncoder(AutoTokenizer.from_pretrained(tiny_folder), DEMO_TEMPLATE)


@pytest.fixture(scope="session")
def mixed_prompts(mixed_data: Path, encoder: PromptEncoder) -> list[EncodedPrompt]:
    """One prompt per record of the mixed data, of several lengths and kinds."""
    records = RecordFile(mixed_data, mixed_data.parent)
    return [encoder.encode_prompt(record, read_media(record, mixed_data.parent, SMALL_PROFILE)) for record in records]
