"""What must hold for the repository as a whole: names, sizes, declared packages, imports without the optional ones."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

OUR_ROOTS = ("rewards", "datamodules", "lightning_modules", "cli")

OPTIONAL = ("decord", "torchcodec", "bitsandbytes", "peft", "flash_attn", "vllm", "matplotlib", "pyarrow")
"""Imported by the function that needs them, never by a module."""

NOT_IN_BASE = {"flash_attn", "vllm", "torchcodec"}
"""Optional packages that requirements.txt leaves out: another file or another environment has them."""

DISTRIBUTIONS = {"PIL": "pillow", "rouge_score": "rouge-score"}
"""Import name -> distribution where the two differ."""


def tracked_files(root: Path = ROOT) -> list[Path]:
    """Files of git's index that exist, relative to the root."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    return [path for name in listing.split("\0") if name and (root / (path := Path(name))).is_file()]


def our_sources() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".py" and path.parts[0].removesuffix(".py") in OUR_ROOTS]


IMPORT_ALL = """
import importlib, importlib.metadata, sys
blocked = {blocked!r}
for name in blocked:
    sys.modules[name] = None  # `import name` raises, `find_spec(name)` answers None

# Libraries that ask the installed distributions instead of importing must not find them either.
discover = importlib.metadata.Distribution.discover
importlib.metadata.Distribution.discover = lambda **which: (
    found for found in discover(**which) if found.name.replace("-", "_") not in blocked
)
import torch

def global_state():
    return torch.load, torch.initial_seed(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()

before = global_state()
failed = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append(f"{{name}}: {{error}}")
    if global_state() != before:
        failed.append(f"{{name}}: changes torch.load, the seed, the threads, the dtype or the grad mode when imported")
        before = global_state()
sys.exit("\\n".join(failed) or None)
"""


def import_without(blocked: tuple[str, ...], modules: list[str], root: Path) -> subprocess.CompletedProcess[str]:
    """Import the modules in a fresh interpreter that stands at `root` and lacks the blocked packages."""
    return subprocess.run(
        [sys.executable, "-c", IMPORT_ALL.format(blocked=blocked), *modules], cwd=root, capture_output=True, text=True
    )


def test_every_module_imports_without_the_optional_packages_and_changes_nothing():
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in our_sources()]
    assert len(modules) > 3

    result = import_without(OPTIONAL, modules, ROOT)

    assert result.returncode == 0, result.stderr


def test_a_module_that_needs_an_optional_package_or_patches_a_library_is_caught(tmp_path):
    (tmp_path / "eager.py").write_text("import json\nfrom decord import VideoReader\n")
    (tmp_path / "lazy.py").write_text("def reader():\n    from decord import VideoReader\n    return VideoReader\n")
    (tmp_path / "patch.py").write_text("import torch\ntorch.load = print\n")

    result = import_without(("decord",), ["eager", "lazy", "patch"], tmp_path)

    assert result.returncode == 1
    eager, patch = result.stderr.splitlines()
    assert eager.startswith("eager: ")
    assert patch.startswith("patch: changes torch.load")


def test_no_drawer_modules_and_no_shadowing_names():
    files = tracked_files()
    drawers = [path for path in files if path.name in {"utils.py", "helpers.py", "common.py"}]
    assert not drawers, "name a module after what it does"

    # A folder or module at the root becomes an import name and hides the package of that name.
    roots = {path.parts[0].removesuffix(".py") for path in files if path.suffix == ".py"}
    assert roots.isdisjoint({"datasets", "evaluate", "types", "utils", *sys.stdlib_module_names})


def test_large_file_guard_passes_here_and_catches_a_planted_file(tmp_path):
    guard = ROOT / ".ci" / "large_files.py"
    here = subprocess.run([sys.executable, guard], cwd=ROOT, capture_output=True, text=True)
    assert here.returncode == 0, here.stderr

    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / "limit.bin").write_bytes(bytes(1_000_000))
    (tmp_path / "over.bin").write_bytes(bytes(1_000_001))
    subprocess.run(["git", "add", "limit.bin", "over.bin"], cwd=tmp_path, check=True)

    planted = subprocess.run([sys.executable, guard], cwd=tmp_path, capture_output=True, text=True)

    assert planted.returncode == 1
    assert planted.stderr.startswith("over.bin: 1,000,001 bytes")
    assert "limit.bin" not in planted.stderr


def required_distributions(file: str) -> set[str]:
    """Names that a requirements file asks for, lower case, with dashes."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return {match[0].lower().replace("_", "-") for line in lines if (match := re.match(r"[A-Za-z][\w-]*", line))}


def test_every_imported_package_is_a_requirement():
    imported = {}
    for path in our_sources():
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                imported.setdefault(name.split(".")[0], f"{path}:{node.lineno}")

    third_party = imported.keys() - set(OUR_ROOTS) - sys.stdlib_module_names - NOT_IN_BASE
    required = required_distributions("requirements.txt")
    missing = {
        name: imported[name]
        for name in third_party
        if DISTRIBUTIONS.get(name, name).lower().replace("_", "-") not in required
    }
    assert "torch" in third_party
    assert not missing, f"imported but not in requirements.txt: {missing}"
