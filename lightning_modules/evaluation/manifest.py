"""What a benchmark score depends on, written down beside it: model, data, settings, versions.

The identity of a run is the content of the model's files and of the data files, the list of media with their sizes, and
every setting that reaches the model or the scores. Two runs of one identity differ by rounding at most. Paths, devices
and the number of ranks are recorded, but are no part of it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from datamodules.evaluation.benchmark_datamodule import BenchmarkDataModule
from datamodules.text_table import listed
from datamodules.video.frame_sampling import FrameConfig
from datamodules.video.video_reader import ReaderName
from lightning_modules.evaluation.answers import ChoiceScoring
from lightning_modules.evaluation.typed_json import read_json
from lightning_modules.policy.adapters import AdapterConfig
from lightning_modules.rollouts.types import SamplingConfig
from rewards.errors import UserError
from rewards.evaluation.scoring import ScoringRule

VERSION = 2
"""Of the manifest's form."""
WEIGHT_SUFFIXES = (".safetensors", ".bin")
MODEL_SUFFIXES = (*WEIGHT_SUFFIXES, ".json", ".txt", ".jinja", ".model")
"""Files of a model folder that loading it may read: weights, configs, tokenizer, chat template."""
PACKAGES = ("torch", "torchvision", "transformers", "tokenizers", "lightning", "peft", "bitsandbytes", "av", "numpy")
HASH_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class MediaIdentity:
    """The media of a benchmark's questions, as a list of paths and sizes.

    Hashing the content of all videos would take longer than reading their frames; another encoding has another size.
    """

    files: int
    missing: int
    sha256_of_paths_and_sizes: str


@dataclass(frozen=True, kw_only=True)
class DataIdentity:
    """The questions of one benchmark."""

    sha256: str
    """Of the data file."""
    items: int
    media: MediaIdentity | None
    """None where media are left out of a comparison."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything besides model and data that reaches the model or the scores; the names are those of the YAML."""

    benchmarks: list[str]
    limit: int | None
    frames: FrameConfig
    reader: ReaderName
    seconds_per_patch: float | None
    max_prompt_tokens: int
    batch_size: int
    prompt: dict[str, Any]
    """Arguments of the prompt template, whose class a user may have written."""
    decoding: SamplingConfig
    choice_scoring: ChoiceScoring
    answer_prefix: str
    scoring_rules: list[ScoringRule]
    seed: int
    dtype: str
    precision: str
    attn_implementation: str
    quantization: str | None
    lora: AdapterConfig | None


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Equal for runs that must give equal scores."""

    model: dict[str, str]
    """File name -> SHA-256 of its content."""
    data: dict[str, DataIdentity]
    """By benchmark."""
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where and when a run began; no part of its identity."""

    device: str
    ranks: int
    started: str
    """ISO 8601 in UTC, to the second."""


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Where model and data lay."""

    model: str
    """Folder or Hugging Face name."""
    data_root: str
    files: dict[str, str]
    """Benchmark -> data file."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`manifest.json`."""

    version: int = VERSION
    identity: Identity
    versions: dict[str, str]
    """Of Python and of the packages that take part in an answer."""
    environment: Environment
    paths: Paths
    run: dict[str, Any] | None
    """The configuration that `validate --manifest` replays; None for a run that was not started from the command
    line."""


def model_files(name_or_path: str) -> dict[str, str]:
    """File name -> SHA-256 of its whole content, for every file that loading the model may read.

    The files of a Hugging Face name are fetched unless they are in the cache.

    Raises:
        UserError: there are no weights among them.
    """
    from huggingface_hub import snapshot_download

    folder = Path(name_or_path)
    if not folder.is_dir():
        folder = Path(snapshot_download(name_or_path, allow_patterns=[f"*{suffix}" for suffix in MODEL_SUFFIXES]))
    files = {path.name: path for path in folder.iterdir() if path.suffix in MODEL_SUFFIXES and path.is_file()}
    if not any(Path(name).suffix in WEIGHT_SUFFIXES for name in files):
        raise UserError(
            f"model_name_or_path is {name_or_path!r}, but {folder} holds no weights ({', '.join(WEIGHT_SUFFIXES)}). "
            "Give the folder of a complete checkpoint."
        )
    with ThreadPoolExecutor(HASH_THREADS) as pool:  # hashing releases the interpreter
        return dict(zip(sorted(files), pool.map(file_hash, (files[name] for name in sorted(files))), strict=True))


def data_identity(data: BenchmarkDataModule) -> dict[str, DataIdentity]:
    """Benchmark -> its questions in this run."""
    items: dict[str, int] = dict.fromkeys(data.benchmarks, 0)
    media: dict[str, set[str]] = {name: set() for name in data.benchmarks}
    for key, record in data.items():
        items[key.benchmark] += 1
        if record.path is not None:
            media[key.benchmark].add(record.path)
    return {
        name: DataIdentity(
            sha256=file_hash(Path(data.paths[name])),
            items=items[name],
            media=_media_identity(Path(data.data_root), sorted(media[name])),
        )
        for name in data.benchmarks
    }


def versions() -> dict[str, str]:
    """Python and the packages that take part in an answer."""
    installed = {distribution.metadata["Name"].lower() for distribution in metadata.distributions()}
    named = {name: metadata.version(name) for name in PACKAGES if name in installed}
    return {"python": platform.python_version()} | named


def identity_hash(manifest: Manifest) -> str:
    """SHA-256 of the identity: equal for runs that must give equal scores."""
    return hashlib.sha256(json.dumps(asdict(manifest.identity), sort_keys=True).encode()).hexdigest()


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of an earlier run.

    Raises:
        UserError: no such file, or one that is no manifest of this version.
    """
    return read_json(path, Manifest, version=VERSION, remedy="Give the manifest.json of a run folder.")


def differences(expected: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One line `place: ... then, ... now` for every leaf in which two nested mappings differ."""
    before, after = dict(leaves_of(expected)), dict(leaves_of(given))
    return [
        f"{'.'.join(place)}: {_shown(before, place)} then, {_shown(after, place)} now"
        for place in sorted(before.keys() | after.keys())
        if place not in before or place not in after or before[place] != after[place]
    ]


def without_media(manifest: Manifest) -> Manifest:
    """The manifest without what is known about the media, which may have been repaired since."""
    data = {name: replace(facts, media=None) for name, facts in manifest.identity.data.items()}
    return replace(manifest, identity=replace(manifest.identity, data=data))


def compare_manifests(earlier: Manifest, given: Manifest, *, title: str, remedy: str) -> list[str]:
    """Differences in library versions between an earlier and this run.

    Raises:
        UserError: they differ in model, data or settings; the message lists where, between title and remedy.
    """
    found = differences(asdict(earlier.identity), asdict(given.identity))
    if found:
        raise UserError(f"{title}{listed(found)}\n{remedy}")
    return differences(earlier.versions, given.versions)


def leaves_of(tree: Any, place: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """(names on the way, value) for everything in nested mappings that is no mapping itself, or an empty one."""
    if isinstance(tree, Mapping) and tree:
        return [leaf for name, value in tree.items() for leaf in leaves_of(value, (*place, str(name)))]
    return [(place, tree)]


def _shown(leaves: Mapping[tuple[str, ...], Any], place: tuple[str, ...]) -> str:
    if place not in leaves:
        return "absent"
    value = leaves[place]
    digest = short_digest(value)
    return digest if digest != value else json.dumps(value, ensure_ascii=False)[:80]


def short_digest(value: Any) -> Any:
    """The beginning of a SHA-256; anything else as it is."""
    return f"{value[:12]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value


def _media_identity(root: Path, paths: Sequence[str]) -> MediaIdentity:
    files = [root / path for path in paths]
    sizes = [file.stat().st_size if file.is_file() else None for file in files]
    listing = "".join(f"{path}\0{size}\n" for path, size in zip(paths, sizes, strict=True))
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return MediaIdentity(files=len(paths), missing=sizes.count(None), sha256_of_paths_and_sizes=digest)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
