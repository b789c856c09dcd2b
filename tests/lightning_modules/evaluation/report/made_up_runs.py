"""Run folders as an evaluation leaves them, with made-up answers to the questions of the benchmark samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.evaluation.benchmarks import BENCHMARKS
from datamodules.video.frame_sampling import FrameConfig
from lightning_modules.evaluation.manifest import (
    DataIdentity,
    Environment,
    Identity,
    Manifest,
    Paths,
    Settings,
    file_hash,
    identity_hash,
)
from lightning_modules.evaluation.results import RunResults, benchmark_results
from lightning_modules.evaluation.typed_json import as_text
from lightning_modules.rollouts.types import SamplingConfig
from rewards.answer_format import wrap_answer, wrap_think
from rewards.evaluation.predictions import Prediction, gold_answer, grade
from rewards.evaluation.scoring import predicted_answer
from tests.datamodules.evaluation.benchmark_samples import write_benchmark_sample

RULES = ["videorft", "official"]
PROFILE = FrameConfig(num_frames=8, min_pixels=56 * 56, max_pixels=112 * 112)
COLORS = ("red", "green", "blue", "yellow", "white")
SETTINGS = Settings(
    benchmarks=[],
    limit=None,
    frames=PROFILE,
    reader="pyav",
    seconds_per_patch=None,
    max_prompt_tokens=16384,
    batch_size=1,
    prompt={"question": "{problem}{options}"},
    decoding=SamplingConfig(),
    choice_scoring="generate",
    answer_prefix="",
    scoring_rules=RULES,
    seed=0,
    dtype="float32",
    precision="32-true",
    attn_implementation="auto",
    quantization=None,
    lora=None,
)


def write_made_up_run(
    folder: Path, data_root: Path, benchmarks: Sequence[str], *, items: int, seed: int, skill: float, **settings: Any
) -> Path:
    """Write a run folder over `items` questions of each benchmark, asked about its sample's four videos in turn.

    Args:
        folder: to write.
        data_root: the samples are written there.
        benchmarks: their names.
        items: questions of each.
        seed: of the answers; the questions are the same for all seeds.
        skill: probability of a right answer.
        settings: further ones of the manifest.
    """
    generator = np.random.default_rng(seed)
    predictions = []
    for name in benchmarks:
        records = json.loads(write_benchmark_sample(data_root, BENCHMARKS[name]).read_text())
        for index in range(items):
            record = {**records[index % len(records)], "problem_id": index}
            predictions.append(_prediction(name, index, record, generator, skill))
    return write_run_folder(folder, data_root, predictions, **settings)


def write_run_folder(
    folder: Path, data_root: Path, predictions: Sequence[Prediction], *, model: str = "models/tiny", **settings: Any
) -> Path:
    """The folder whose predictions these are, with results that follow from them."""
    benchmarks = list(dict.fromkeys(prediction.benchmark for prediction in predictions))
    manifest = Manifest(
        identity=Identity(
            model={"config.json": "a1" * 32},
            data={name: DataIdentity(sha256="0" * 64, items=4, media=None) for name in benchmarks},
            settings=replace(SETTINGS, benchmarks=benchmarks, **settings),
        ),
        versions={"python": "3.11"},
        environment=Environment(device="cpu", ranks=1, started="2001-01-01T00:00:00"),
        paths=Paths(model=model, data_root=str(data_root), files={}),
        run=None,
    )
    folder.mkdir(parents=True)
    (folder / "predictions.jsonl").write_text("".join(prediction.to_line() for prediction in predictions))
    notes = {name: [f"{len(predictions):,} made-up answers."] for name in benchmarks}
    results = RunResults(
        manifest_sha256=identity_hash(manifest),
        predictions_sha256=file_hash(folder / "predictions.jsonl"),
        model=model,
        choice_scoring="generate",
        scoring_rules=RULES,
        benchmarks=benchmark_results(predictions, RULES, notes),
    )
    (folder / "results.json").write_text(as_text(results))
    (folder / "manifest.json").write_text(as_text(manifest))
    return folder


def made_up_prediction(
    benchmark: str, index: int, record: dict[str, Any], completion: str | None, failure: str | None = None
) -> Prediction:
    """The prediction that an evaluation makes of a record and what the model wrote."""
    gold = gold_answer(record["solution"])
    answer = None if completion is None else predicted_answer(completion)
    facts = BENCHMARKS[benchmark]
    categories = facts.categories(record)
    graded = grade(facts, RULES, problem_type=record["problem_type"], categories=categories, answer=answer, gold=gold)
    return Prediction(
        benchmark=benchmark,
        index=index,
        problem_id=str(record["problem_id"]),
        problem_type=record["problem_type"],
        data_type=record["data_type"],
        question=record["problem"],
        options=record["options"] or [],
        gold=gold,
        path=record.get("path"),
        start=record.get("start"),
        end=record.get("end"),
        categories=categories,
        completion=completion,
        answer=answer,
        well_formed=None if completion is None else completion.startswith("<think>"),
        scores=graded.scores,
        ungraded=graded.ungraded,
        failure=failure,
        num_frames=None if completion is None else PROFILE.num_frames,
        completion_tokens=None if completion is None else 12 + len(completion.split()),
        truncated=None if completion is None else not completion.endswith(">"),
    )


def _prediction(
    benchmark: str, index: int, record: dict[str, Any], generator: np.random.Generator, skill: float
) -> Prediction:
    luck, slip = generator.random(2)
    if index % 11 == 10:
        failure = f"{benchmark}:{index + 1} (problem_id {index}): the video ends in the middle of a frame."
        return made_up_prediction(benchmark, index, record | {"path": "./cut_off.mp4"}, None, failure)
    gold = gold_answer(record["solution"])
    answer = gold if luck < skill else _wrong(gold, generator)
    seen = COLORS[index % 4]
    think = (
        f"The question asks about the order of colors. In the first frames I see a {seen} square on a dark ground; "
        f"after about one second it is gone and a {COLORS[(index + 1) % 4]} one takes its place. Let me check the "
        f"options against this. The first frame settles it, and nothing later changes the order. So the answer is "
        f"{answer}."
    )
    if slip < 0.08:
        return made_up_prediction(benchmark, index, record, f"I think it is {answer}, because the {seen} square")
    if slip < 0.2:
        answer = f"{answer}. {seen}"  # one rule reads the letter of it, the other does not
    return made_up_prediction(benchmark, index, record, f"{wrap_think(think)}\n{wrap_answer(answer)}")


def _wrong(gold: str, generator: np.random.Generator) -> str:
    if gold.replace(".", "").isdigit():
        return f"{float(gold) * (1 + generator.choice([0.08, 0.3, 0.9])):.1f}"
    return str(generator.choice([letter for letter in "ABCD" if letter != gold]))
