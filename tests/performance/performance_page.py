"""Write docs/performance.md and the README's table from the measured results.

python tests/performance/performance_page.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "performance" / "results"
PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
START, END = "<!-- performance -->", "<!-- end of performance -->"
Report = Mapping[str, Any]
CASES = {
    "rollout_prefill": "prefill of the rollout",
    "rollout": "whole rollout",
    "update": "update (forward and backward, video included)",
    "logprobs": "log-probabilities, forward and backward",
    "step": "whole step",
}
UNEQUAL = ", completions of unequal length"
METHODS = {
    "repeated": "repeated",
    "strongest": "strongest",
    "strongest_single": "strongest, one at a time",
    "prefix_grouper": "PrefixGrouper",
    "ours": "ours, packed row",
    "ours_sliced": "ours, slices of 2",
}


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")


def page() -> str:
    """The text of docs/performance.md."""
    parts = ["# Performance", _INTRODUCTION, _group_section(_load("cpu")), _packing_section(), _gpu_section()]
    parts += [_reward_section(_load("semantic_reward")), _video_section(_load("video_reader"))]
    return "\n\n".join(parts) + "\n"


def with_table(readme: str) -> str:
    """The README with a new table between its two marks.

    Raises:
        ValueError: a mark is missing or occurs twice.
    """
    if readme.count(START) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md needs {START} and {END} once each, around the table.")
    before, rest = readme.split(START)
    return f"{before}{START}\n{_short_table(_load('cpu'))}\n{END}{rest.split(END)[1]}"


_INTRODUCTION = """\
What a GRPO group costs, and what the parts around it cost. Every number comes from a file in
[tests/performance/results](../tests/performance/results). `make bench`, `make bench-reward` and `make bench-video`
measure them again on your machine, and `python tests/performance/performance_page.py` writes this page from them.

Shapes: P prompt tokens, G completions per prompt, C tokens of the longest completion."""


def _load(name: str) -> Report:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _cases(report: Report) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and row of every measurement of this project's packed row against the published code."""
    rows = [row for row in report["rows"] if row["method"] == "ours" and "repeated_time_ratio" in row]
    return [(CASES[row["case"]] + (UNEQUAL if row["lengths"] == "unequal" else ""), row) for row in rows]


def _updates(report: Report) -> list[dict[str, Mapping[str, Any]]]:
    """Rows by method of every update that was measured against the strongest ordinary code too."""
    groups: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in report["rows"]:
        if row["case"] == "update":
            groups.setdefault((row["P"], row["G"], row["C"], row["lengths"]), {})[row["method"]] = row
    return [methods for methods in groups.values() if "strongest" in methods]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _ratio(value: float) -> str:
    return f"{value:.2f} x"


def _short_table(report: Report) -> str:
    wanted = {("update", 1024), ("update", 4096), ("rollout_prefill", 1024), ("rollout", 1024), ("step", 1024)}
    rows = [
        (name, str(row["P"]), _ratio(row["repeated_time_ratio"]), _ratio(row["repeated_memory_ratio"]))
        for name, row in _cases(report)
        if (row["case"], row["P"]) in wanted and (row["G"], row["C"] or 256) == (8, 256)
    ]
    header = ("on a CPU, G = 8, C = 256", "P", "repeated / ours, time", "repeated / ours, memory")
    against_strongest = [
        (
            *(str(methods["ours"][shape]) for shape in "PGC"),
            *(_ratio(methods["ours"][f"strongest_{quantity}_ratio"]) for quantity in ("time", "memory")),
            *(_ratio(methods["ours_sliced"][f"strongest_{quantity}_ratio"]) for quantity in ("time", "memory")),
        )
        for methods in _updates(report)
        if methods["ours"]["lengths"] == "equal"
    ]
    columns = ("P", "G", "C", "ours, time", "ours, memory", "in slices of 2, time", "in slices of 2, memory")
    return f"""\
{_table(header, rows)}

Cost of pixels and prompt repeated for every completion, as in the published code, divided by ours; the
gradients are equal. P prompt tokens, G completions, C tokens. {report["date"]}, {report["machine"]},
torch {report["torch"]}, random weights of size `{report["size"]}`.

The same for an update by the strongest ordinary code (video once, prompt repeated, log-probabilities in chunks), on a
CPU, divided by our packed row and by ours in slices, whose memory is the same for every G:

{_table(columns, against_strongest)}"""


def _group_section(report: Report) -> str:
    rows = [
        (
            name,
            *(str(row[shape]) if row[shape] is not None else "" for shape in "PGC"),
            f"{row['seconds']:.3g}",
            _ratio(row["repeated_time_ratio"]),
            f"{row['peak_memory_mib']:.0f}",
            _ratio(row["repeated_memory_ratio"]),
        )
        for name, row in _cases(report)
    ]
    header = ("on a CPU", "P", "G", "C", "seconds", "repeated / ours, time", "peak MiB", "repeated / ours, memory")
    return f"""\
## A GRPO group on a CPU

{report["date"]}, {report["machine"]}, torch {report["torch"]}, transformers {report["transformers"]};
random weights of size `{report["size"]}` in {report["dtype"]}. "Repeated" computes a group as the published code does:
pixels and prompt once for every completion, stock attention, log_softmax over the vocabulary. Both compute the same
gradients. Methods take turns in one process and medians are compared. Seconds are user time; memory is the peak beyond
weights, gradients and inputs. [The full table](../tests/performance/results/cpu.md) has more methods, among them the
video encoded once with the prompt still repeated, and the installed `generate(num_return_sequences=G)`.

{_table(header, rows)}

{_update_section(report)}

![cost against prompt length and group size](../tests/performance/results/cpu.png)

The log-probabilities trade time for memory: output projection and softmax run over chunks of `logprob_chunk_size` rows
(512) and are computed again in the backward pass, so their memory does not grow with the number of completions."""


def _update_section(report: Report) -> str:
    groups = _updates(report)

    def table(quantity: str, form: str) -> str:
        rows = [
            (
                *(str(methods["ours"][shape]) for shape in "PGC"),
                methods["ours"]["lengths"],
                *(format(methods[name][quantity], form) if name in methods else "" for name in METHODS),
            )
            for methods in groups
        ]
        return _table(("P", "G", "C", "lengths", *METHODS.values()), rows)

    return f"""\
### The update against other ways

All of these compute the same gradients. "Strongest" is the strongest ordinary code: the video encoded once, the prompt
repeated, and log-probabilities of the completions only, in our chunks;
"one at a time" runs a backward pass after every completion, which is the least memory that rows of prompt and
completion can take, but computes the prompt again for each. [PrefixGrouper][prefix] (Liu et al. 2025,
[arXiv 2506.05433](https://arxiv.org/abs/2506.05433)) computes a prompt once too and copies its keys and values to every
completion; it runs here with our vision tower and our chunks, so what differs is attention. In slices
(`micro_batch_completions: 2`), every two completions have a backward pass of their own and the prompt one at the end,
so memory is that of the prompt's graph and of two completions, whatever G is. Groups of more than 10,240 tokens are run
less often, those of more than 20,480 once, so their seconds are less certain than their memory.
Empty cells were not measured.

Seconds on a CPU:

{table("seconds", ".3g")}

Peak MiB on a CPU:

{table("peak_memory_mib", ".0f")}

[prefix]: https://github.com/johncaged/PrefixGrouper"""


def _packing_section() -> str:
    table = (RESULTS / "packed_fine_tuning.md").read_text().rstrip()
    return f"""\
## Fine-tuning in one row

Eight records of text of unequal length (256 to 1,024 tokens), forward and backward, in one row without padding and
padded to the longest, on a CPU: AMD EPYC, 2 cores, 1 thread, 2026-11-21, size `small` in float32, medians of 5
interleaved repeats of user time (`python tests/performance/packed_fine_tuning.py`).

{table}"""


def _gpu_section() -> str:
    if (RESULTS / "gpu.json").exists():
        report = _load("gpu")
        return f"## A GRPO group on a GPU\n\n{report['machine']}: [all numbers](../tests/performance/results/gpu.md)."
    return """\
## A GRPO group on a GPU

Not measured. On a machine with a GPU, `make bench BENCH="--size 3b"` (or `7b`) measures the same cases in bfloat16 with
the published shapes and writes `tests/performance/results/gpu.json`."""


def _reward_section(report: Report) -> str:
    once, repeated = report["encodings"]["once"], report["encodings"]["repeated"]
    return f"""\
## The semantic reward

{report["date"]}, {report["machine"]}; {report["frames"]} frames, G = {report["completions"]}, a SigLIP with random
weights. Every frame and every text of a group is encoded once: {once} encodings instead of {repeated}. Encoding the
frames for each completion takes {report["time_ratio"]:.1f} times as long."""


def _video_section(report: Report) -> str:
    names = list(dict.fromkeys(row["case"] for row in report["rows"]))
    readers = list(dict.fromkeys(row["reader"] for row in report["rows"]))
    cells = {(row["case"], row["reader"]): row for row in report["rows"]}

    def cell(row: Mapping[str, Any]) -> str:
        wrong = "" if row["exact"] else f", **{row['wrong_frames']} of 16 frames wrong**"
        return f"{row['seconds']:.2f} s ({_ratio(row['ratio_to_fastest'])}){wrong}"

    rows = [(name, *(cell(cells[name, reader]) for reader in readers)) for name in names]
    return f"""\
## Video readers

{report["date"]}, {report["machine"]}; {report["timing"]}.
Each reader reads the 16 frames of a training sample. In brackets: its time divided by the fastest reader's. Frames are
compared with those of a full decode.

{_table(("file", *readers), rows)}"""


if __name__ == "__main__":
    main()
