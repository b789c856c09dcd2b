"""The import floors: rewards <- datamodules <- lightning_modules <- cli, and the floors inside lightning_modules;
no cycle between files or between folders, and no folder too full to be read at a glance.

The checker reads the source with `ast`, so an import hidden in a function counts like one at the top of a file.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = {
    "rewards": 0,
    "datamodules": 1,
    "lightning_modules.functional": 2,
    "lightning_modules.policy": 3,
    "lightning_modules.rollouts": 4,
    "lightning_modules": 5,
    "cli": 6,
}
"""Package or module -> floor; the longest matching name counts. A file imports its own floor and those below."""

FUNCTIONAL = "lightning_modules.functional"

FULL_FOLDER = 18
"""Files and folders of a folder, `__init__.py` apart."""


def floor_of(module: str) -> int | None:
    """Floor of a dotted name; None for what is not ours."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        floor = FLOORS.get(".".join(parts[:end]))
        if floor is not None:
            return floor
    return None


def module_name(path: Path) -> str:
    """`a/b/c.py` -> `a.b.c`, `a/b/__init__.py` -> `a.b.__init__`; path relative to the repository root."""
    return ".".join(path.with_suffix("").parts)


def own_floor(module: str) -> int:
    """Floor a file stands on. `lightning_modules/__init__.py` runs before all beneath it, so it takes their lowest."""
    if module == "lightning_modules.__init__":
        return FLOORS[FUNCTIONAL]
    floor = floor_of(module)
    assert floor is not None, module
    return floor


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import; `from a import b` gives `a.b`, a relative import keeps its dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module + "." if node.module else "")
            yield from ((node.lineno, prefix + alias.name) for alias in node.names)


def violations(root: Path, path: Path) -> list[str]:
    """One line `file:line: complaint` for every import of `root / path` that breaks a floor."""
    module = module_name(path)
    floor = own_floor(module)
    found = []
    for line, name in imported_names(ast.parse((root / path).read_text(encoding="utf-8"))):
        target = floor_of(name)
        top = name.split(".")[0]
        if name.startswith("."):
            complaint = f"imports {name} relatively; write the absolute name"
        elif target is not None and target > floor:
            complaint = f"imports {name}, which stands above it ({' <- '.join(FLOORS)})"
        elif module.startswith(FUNCTIONAL + ".") and not (
            name.startswith((FUNCTIONAL, "rewards.errors.")) or top == "torch" or top in sys.stdlib_module_names
        ):
            complaint = f"imports {name}; {FUNCTIONAL} may import only torch, the standard library and rewards.errors"
        else:
            continue
        found.append(f"{path}:{line}: {complaint}")
    return found


def source_files() -> list[Path]:
    tops = sorted({name.split(".")[0] for name in FLOORS} - {"cli"})
    listing = subprocess.run(
        ["git", "ls-files", "--", "cli.py", *(f"{top}/*.py" for top in tops)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [Path(line) for line in listing.splitlines() if (ROOT / line).is_file()]


def test_no_file_imports_from_a_higher_floor():
    files = source_files()
    assert {path.parts[0] for path in files} >= {"rewards", "datamodules", "lightning_modules"}
    found = [complaint for path in files for complaint in violations(ROOT, path)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("rewards/suite.py", "import datamodules.types\n", "rewards/suite.py:1: imports datamodules.types, which"),
        ("rewards/suite.py", "import torch\nfrom cli import main\n", "rewards/suite.py:2: imports cli.main, which"),
        (
            "datamodules/checks/data_check.py",
            "def look():\n    from lightning_modules.policy import tiny\n",
            "datamodules/checks/data_check.py:2: imports lightning_modules.policy.tiny, which",
        ),
        (
            "lightning_modules/policy/policy.py",
            "from lightning_modules import rollouts\n",
            "lightning_modules/policy/policy.py:1: imports lightning_modules.rollouts, which",
        ),
        (
            "lightning_modules/rollouts/vllm_engine.py",
            "import lightning_modules.grpo_module\n",
            "lightning_modules/rollouts/vllm_engine.py:1: imports lightning_modules.grpo_module, which",
        ),
        (
            "lightning_modules/callbacks/samples.py",
            "import cli\n",
            "lightning_modules/callbacks/samples.py:1: imports cli, which",
        ),
        (
            "lightning_modules/__init__.py",
            "from lightning_modules.sft_module import SFTModule\n",
            "lightning_modules/__init__.py:1: imports lightning_modules.sft_module.SFTModule, which",
        ),
        (
            "lightning_modules/functional/masking.py",
            "import math\nimport numpy as np\n",
            "lightning_modules/functional/masking.py:2: imports numpy; lightning_modules.functional may import only",
        ),
        (
            "lightning_modules/functional/masking.py",
            "from rewards.types import ProblemType\n",
            "lightning_modules/functional/masking.py:1: imports rewards.types.ProblemType; lightning_modules.funct",
        ),
        ("cli.py", "from . import rewards\n", "cli.py:1: imports .rewards relatively"),
    ],
)
def test_a_planted_violation_is_reported_with_file_line_and_import(tmp_path, path, source, complaint):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)

    found = violations(tmp_path, Path(path))

    assert len(found) == 1
    assert found[0].startswith(complaint)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("datamodules/records.py", "from rewards.types import ProblemType\n"),
        ("lightning_modules/functional/masking.py", "import math\nfrom torch import Tensor\n"),
        (
            "lightning_modules/policy/policy.py",
            "from lightning_modules.functional import masking\nimport transformers\n",
        ),
        ("lightning_modules/rollouts/engine.py", "from lightning_modules.policy.policy import Policy\n"),
        ("lightning_modules/grpo_module.py", "from lightning_modules.callbacks.samples import Samples\n"),
        ("lightning_modules/callbacks/samples.py", "from lightning_modules.grpo_module import GRPOModule\n"),
        ("cli.py", "import rewards.suite, datamodules.records, lightning_modules.sft_module\n"),
    ],
)
def test_imports_of_the_own_floor_and_below_pass(tmp_path, path, source):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)

    assert violations(tmp_path, Path(path)) == []


def our_module(name: str, modules: set[str]) -> str | None:
    """The file that a dotted name stands in (a class counts for its module); None for what is not ours."""
    parts = name.split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next((module for prefix in prefixes for module in (prefix, prefix + ".__init__") if module in modules), None)


def import_graph(root: Path, files: Iterable[Path]) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports; paths relative to `root`."""
    sources = {module_name(path): path for path in files}
    return {
        module: {
            target
            for _, name in imported_names(ast.parse((root / path).read_text(encoding="utf-8")))
            if (target := our_module(name, set(sources))) is not None and target != module
        }
        for module, path in sources.items()
    }


def folder_graph(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Folder -> folders whose files its files import. `__init__` files only gather names and are left out."""
    folders: dict[str, set[str]] = {}
    for module, targets in graph.items():
        folder, _, name = module.rpartition(".")
        if name != "__init__":
            found = {target.rpartition(".")[0] for target in targets if not target.endswith(".__init__")}
            folders.setdefault(folder, set()).update(found - {folder})
    return folders


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """A cycle of the graph, its first node once more at the end; None if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_no_import_cycle_between_files_or_folders():
    graph = import_graph(ROOT, source_files())
    assert sum(map(len, graph.values())) > 300
    assert cycle(graph) is None
    assert cycle(folder_graph(graph)) is None


def test_a_planted_cycle_is_found(tmp_path):
    sources = {
        "rewards/a.py": "from rewards.inner import b\n",
        "rewards/inner/b.py": "",
        "rewards/inner/c.py": "def late():\n    from rewards.d import Name\n",
        "rewards/d.py": "",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    graph = import_graph(tmp_path, map(Path, sources))
    assert cycle(graph) is None
    assert set(cycle(folder_graph(graph))) == {"rewards", "rewards.inner"}

    (tmp_path / "rewards/d.py").write_text("import rewards.inner.c\n")
    assert set(cycle(import_graph(tmp_path, map(Path, sources)))) == {"rewards.d", "rewards.inner.c"}


def test_no_folder_is_too_full_to_take_in_at_a_glance():
    entries = {(path.parts[:depth], part) for path in source_files() for depth, part in enumerate(path.parts) if depth}
    counts = Counter("/".join(folder) for folder, part in entries if part != "__init__.py")
    assert len(counts) > 10
    assert {folder: count for folder, count in counts.items() if count > FULL_FOLDER} == {}
