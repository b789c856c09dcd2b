"""What a manifest pins down, and the replay that holds a run to it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import cli
from lightning_modules.evaluation.manifest import differences, identity_hash, model_files, read_manifest
from lightning_modules.evaluation.replay import run_config, with_manifest
from lightning_modules.evaluation.typed_json import as_text
from lightning_modules.rollouts.types import SamplingConfig
from tests.lightning_modules.evaluation.benchmark_runs import (
    benchmark_data_module,
    benchmark_module,
    bytes_of,
    evaluate,
)

ROOT = Path(__file__).parents[3]
FILES = ("predictions.jsonl", "results.json", "reference/eval_mmvu_output.json")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # restored after the test, whatever Lightning wrote there


@pytest.fixture(scope="module")
def finished(tiny_folder, benchmark_data, tmp_path_factory):
    """A folder with a model, a data root, and a run of the command line on them."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_folder, folder / "model")
    (folder / "data").mkdir()
    shutil.copytree(benchmark_data / "MMVU", folder / "data" / "MMVU")
    shutil.copy(benchmark_data / "eval_mmvu.json", folder / "data")
    assert cli.main(command_line(folder)) == 0
    return folder


@pytest.fixture
def own(finished, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(finished, tmp_path / "own")


def command_line(folder):
    quiet = ("logger", "enable_progress_bar")
    return [
        "validate",
        "--config=configs/eval/mmvu.yaml",
        "--config=configs/trainer/cpu.yaml",
        f"--model.model_name_or_path={folder / 'model'}",
        f"--model.output={folder / 'run'}",
        "--model.evaluation.max_new_tokens=6",
        f"--data.data_root={folder / 'data'}",
        "--data.num_workers=0",
        "--data.eval_frames={num_frames: 4, min_pixels: 784, max_pixels: 3136}",
        "--data.prompt={class_path: datamodules.prompts.PromptTemplate, init_args: {instruction: Look twice.}}",
        f"--trainer.default_root_dir={folder / 'run'}",
        *(f"--trainer.{name}=false" for name in quiet),
    ]


def replay(folder, *options):
    quiet = ("--trainer.logger=false", "--trainer.enable_progress_bar=false")
    manifest = f"--manifest={folder / 'run' / 'manifest.json'}"
    moved = (f"--model.model_name_or_path={folder / 'model'}", f"--data.data_root={folder / 'data'}")
    return cli.main(["validate", manifest, "--config=configs/trainer/cpu.yaml", *quiet, *moved, *options])


def test_manifest_names_model_data_settings_and_versions(own):
    manifest = read_manifest(own / "run" / "manifest.json")
    identity = manifest.identity
    weights = hashlib.sha256((own / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert identity.model["model.safetensors"] == weights
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= identity.model.keys()
    file = hashlib.sha256((own / "data" / "eval_mmvu.json").read_bytes()).hexdigest()
    mmvu = identity.data["mmvu"]
    assert (mmvu.sha256, mmvu.items, mmvu.media.files, mmvu.media.missing) == (file, 4, 4, 0)
    assert identity.settings.frames.num_frames == 4
    assert identity.settings.prompt["instruction"] == "Look twice."
    assert identity.settings.decoding == SamplingConfig(max_new_tokens=6, temperature=0.01, top_p=0.001)
    assert identity.settings.scoring_rules == ["videorft", "official"]
    assert {"python", "torch", "transformers", "lightning", "av"} <= manifest.versions.keys()
    results = json.loads((own / "run" / "results.json").read_text())
    assert results["manifest_sha256"] == identity_hash(manifest)


def test_a_replay_from_other_folders_gives_the_same_bytes(own, capsys):
    assert replay(own) == 0, capsys.readouterr().err
    first, second = (bytes_of(own / name, FILES) for name in ("run", "run_replay"))
    first_results, second_results = (json.loads(files.pop("results.json")) for files in (first, second))
    assert second_results.pop("model") != first_results.pop("model")
    assert (second, second_results) == (first, first_results)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("weights", "model.model.safetensors"),
        ("questions", "data.mmvu.sha256"),
        ("video", "data.mmvu.media.sha256_of_paths_and_sizes"),
        ("frames", "settings.frames.num_frames: 4 then, 2 now"),
        ("seed", "settings.seed: 0 then, 1 now"),
    ],
)
def test_a_replay_refuses_what_would_change_the_scores(own, capsys, change, line):
    options = {"frames": ["--data.eval_frames.num_frames=2"], "seed": ["--seed_everything=1"]}.get(change, [])
    if change == "weights":
        path = own / "model" / "model.safetensors"
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
    elif change == "questions":
        path = own / "data" / "eval_mmvu.json"
        path.write_text(path.read_text() + "\n")
    elif change == "video":
        video = next((own / "data" / "MMVU").rglob("*.mp4"))
        video.write_bytes(video.read_bytes() + b"\0")
    assert replay(own, *options) == 2
    said = capsys.readouterr().err
    assert f"This run is not the one of {own / 'run' / 'manifest.json'}:\n  {line}" in said
    assert said.count(" then, ") == 1
    assert not {"manifest.json", "predictions.jsonl"} & {path.name for path in (own / "run_replay").iterdir()}


def test_other_versions_are_said_and_allowed(own, recwarn):
    path = own / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(manifest))
    assert replay(own) == 0
    assert any('torch: "1.0" then, ' in str(warning.message) for warning in recwarn)


def test_without_a_manifest_a_command_line_stays_as_it_is():
    given = ["validate", "--config=a.yaml", "--trainer.devices", "2"]
    assert with_manifest(given) == given


def test_a_run_of_a_config_that_names_no_precision_can_be_replayed():
    run = cli.lightning_cli(["--config=configs/eval/mmvu.yaml"], run=False)
    config = run_config(json.loads(run.parser.dump(run.config, format="json")))
    assert config["trainer"] == {"precision": None}
    again = cli.lightning_cli([f"--config={json.dumps(config)}", "--model.output=runs/eval/mmvu"], run=False)
    assert again.config["trainer"]["precision"] is None
    assert again.config["model"] == run.config["model"]


def test_options_after_the_manifest_win(finished, tmp_path):
    path = tmp_path / "run" / "manifest.json"
    path.parent.mkdir()
    run = {"model": {"class_path": "m", "init_args": {"seed": 0}}, "data": {}, "trainer": {}}
    path.write_text(as_text(replace(read_manifest(finished / "run" / "manifest.json"), run=run)))
    command, config, *rest = with_manifest(["test", "--trainer.devices=2", "--manifest", str(path), "--config=b.yaml"])
    assert (command, rest) == ("test", ["--trainer.devices=2", "--config=b.yaml"])
    own = {"seed": 0, "output": str(tmp_path / "run_replay"), "manifest": str(path)}
    assert yaml.safe_load(config.removeprefix("--config="))["model"]["init_args"] == own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing"),
        ("no", "is not JSON"),
        ("[]", "is no Manifest of version 2"),
        ('{"version": 1, "identity": {}}', "is no Manifest of version 2"),
        ('{"version": 2, "identity": {}}', "the file must hold version, identity"),
    ],
)
def test_unusable_manifests_are_named(tmp_path, text, message):
    path = tmp_path / "manifest.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        with_manifest(["validate", f"--manifest={path}"])
    assert str(path) in str(error.value)


def test_a_manifest_without_a_configuration_cannot_be_replayed(finished, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(as_text(replace(read_manifest(finished / "run" / "manifest.json"), run=None)))
    with pytest.raises(ValueError, match="was not started from the command line"):
        with_manifest(["validate", f"--manifest={path}"])


def test_fit_takes_no_manifest():
    with pytest.raises(ValueError, match="with validate or test, not with fit"):
        with_manifest(["fit", "--manifest=x.json"])


def test_runs_from_python_leave_a_manifest_without_configuration(tiny_folder, benchmark_data, tmp_path):
    data = benchmark_data_module(tiny_folder, benchmark_data, benchmarks=["mmvu"])
    evaluate(benchmark_module(tiny_folder, tmp_path), data, limit_val_batches=1)
    assert read_manifest(tmp_path / "manifest.json").run is None


def test_differences_name_every_leaf():
    before = {"a": {"b": 1, "c": [1]}, "d": None, "e": {}}
    after = {"a": {"b": 2, "c": [1]}, "d": {"x": True}, "e": {}}
    assert differences(before, after) == [
        "a.b: 1 then, 2 now",
        "d: null then, absent now",
        "d.x: absent then, true now",
    ]
    assert differences(before, before) == []


def test_model_files_leave_out_what_loading_does_not_read(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    before = model_files(str(folder))
    (folder / "README.md").write_text("read me")
    assert model_files(str(folder)) == before
    assert sorted(before) == sorted(path.name for path in folder.iterdir() if path.name != "README.md")


def test_files_of_a_hugging_face_name_are_those_of_the_cache(tiny_folder, tmp_path):
    place = tmp_path / "models--someone--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    shutil.copytree(tiny_folder, place / "snapshots" / "abc")
    script = "from lightning_modules.evaluation.manifest import *; print(json.dumps(model_files('someone/tiny')))"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=offline, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == model_files(str(tiny_folder))


def test_a_folder_without_weights_is_named(tiny_folder, tmp_path):
    shutil.copy(tiny_folder / "config.json", tmp_path)
    with pytest.raises(ValueError, match="holds no weights") as error:
        model_files(str(tmp_path))
    assert str(tmp_path) in str(error.value)
