"""The recipes of CONTRIBUTING.md, each one file and one line, in a copy of the repository where a run uses them all."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SNIPPET = re.compile(r"```python\n# (?P<file>\S+\.py)\n(?P<code>.*?)```\n(?P<text>.*?)(?=\n##|\Z)", re.DOTALL)
LINE = re.compile(
    r"In (?:the same file|`(?P<registry>\S+)`), (?:import it and )?add `(?P<line>[^`]+)` to `(?P<name>\w+)`"
)


def recipes():
    """File, code, and the registry's file, dict and new line (None for a recipe without a registry)."""
    for snippet in SNIPPET.finditer(PAGE):
        line = LINE.search(" ".join(snippet["text"].split()))
        place = line and (line["registry"] or snippet["file"], line["name"], line["line"])
        yield snippet["file"], snippet["code"], place


def follow(root: Path, file: str, code: str, place: tuple[str, str, str] | None) -> None:
    """Do what the page says: write the file, add the line."""
    if not (root / file).exists():
        (root / file).write_text(f"from __future__ import annotations\n\n{code}", encoding="utf-8")
    if place is None:
        return
    registry, name, line = place
    text = (root / registry).read_text(encoding="utf-8")
    start, end = re.search(rf"^{name}: [^\n]*{{\n", text, re.MULTILINE).span()
    if registry == file:
        text = f"{text[:start]}{code}\n\n{text[start:end]}    {line}\n{text[end:]}"
    else:
        (own,) = {node.id for node in ast.walk(ast.parse(f"{{{line}}}")) if isinstance(node, ast.Name)}
        module = file.removesuffix(".py").replace("/", ".")
        text = f"{text[:start]}from {module} import {own}\n\n{text[start:end]}    {line}\n{text[end:]}"
    (root / registry).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the repository in which every recipe was followed."""
    root = tmp_path_factory.mktemp("extended") / "repository"
    root.mkdir()
    for part in ("rewards", "datamodules", "lightning_modules", "configs", "tests"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for file in ("cli.py", "pyproject.toml"):
        shutil.copy(ROOT / file, root / file)
    for recipe in recipes():
        follow(root, *recipe)
    for command in (["init", "--quiet"], ["add", "--all"]):  # the tests ask git for our files
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


def python(root, *arguments):
    environment = os.environ | {"PYTHONPATH": str(root), "PL_GLOBAL_SEED": "0"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=root, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


USE = """
import sys

import torch

import cli

run = cli.lightning_cli(["fit", *sys.argv[1:]])
(group,) = run.model.last_rollouts.groups
words = [completion.text.split() for completion in group.completions]
expected = [len(set(each)) / max(len(each), 1) for each in words]
torch.testing.assert_close(run.model.last_rollouts.breakdown.components["variety"][0], torch.tensor(expected))
assert {len(completion.token_ids) for completion in group.completions} == {4}  # the engine's limit, not the sampling's
assert run.model.loss.function.__name__ == "reinforce_loss"
assert run.trainer.datamodule.reader == "every_frame"
"""


def test_a_run_uses_all_of_them(extended, tiny_folder, mixed_data, tmp_path):
    engine = re.search(r"engine: ({.*})", PAGE)[1]
    python(
        extended,
        "-c",
        USE,
        *(f"--config=configs/{name}.yaml" for name in ("grpo/qwen2_5_vl_7b", "trainer/cpu", "debug/fast_dev_run")),
        f"--model.init_args.model_name_or_path={tiny_folder}",
        "--model.init_args.sampling.max_new_tokens=6",
        "--model.init_args.rewards=[{class_path: rewards.variety.VarietyReward}]",
        "--model.init_args.loss=reinforce",
        f"--model.init_args.engine={engine}",
        f"--data.init_args.data_root={mixed_data.parent}",
        f"--data.init_args.train_files=[{mixed_data}]",
        "--data.init_args.train_frames={num_frames: 4, min_pixels: 784, max_pixels: 3136, image_max_pixels: 3136}",
        "--data.init_args.num_workers=0",
        "--data.init_args.reader=every_frame",
        f"--trainer.default_root_dir={tmp_path}",
    )


def test_their_imports_stand_on_the_right_floors(extended):
    python(extended, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_import_floors.py")
