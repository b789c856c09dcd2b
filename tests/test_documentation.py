"""What the documentation names exists: files, settings, and the parts of its sample scripts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.sh"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, *EXAMPLES, *sorted((ROOT / "configs").rglob("*.yaml"))]


def page_id(path):
    return str(path.relative_to(ROOT))


def configs_named_in(text):
    return re.findall(r"configs/[\w/.-]+\.yaml", text)


@pytest.mark.parametrize("path", TEXTS, ids=page_id)
def test_configs_that_are_named_exist(path):
    missing = {name for name in configs_named_in(path.read_text(encoding="utf-8")) if not (ROOT / name).is_file()}
    assert not missing


def test_configs_are_found_in_the_text():
    assert configs_named_in("`-c configs/grpo/x-1.yaml`, configs/trainer/cpu.yaml.") == [
        "configs/grpo/x-1.yaml",
        "configs/trainer/cpu.yaml",
    ]
    assert len(configs_named_in((ROOT / "docs" / "multi_node.md").read_text(encoding="utf-8"))) > 5


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("path", EXAMPLES, ids=page_id)
def test_sample_scripts_are_sound(path):
    assert path.stat().st_mode & 0o100, "not executable"
    checked = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
