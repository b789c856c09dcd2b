"""What the semantic reward costs per group: every frame once, or once per completion as in the published code.

    python tests/performance/semantic_reward.py [--frames 16] [--group 8] [--repeats 5] [--output FILE.json]

Both ways use the same random SigLIP and give the same scores; they take turns and medians of user CPU time are compared
(wall time on a GPU). The reward's cache across epochs is switched off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rewards.semantic import SemanticReward
from rewards.types import ProblemType, RewardInput
from tests.performance.measure import interleaved_seconds, machine
from tests.performance.random_siglip import write_tiny_siglip

TOWER = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_siglip(Path(folder), image_size=96, tower=TOWER)
        reward = SemanticReward(model_name_or_path=str(model), gate=None, cache_size=0)
        reward.prepare()
        group = _group(options.frames, options.group)
        once, repeated = reward.score(group, {}), _per_completion(reward, group)
        assert all(abs(a - b) < 1e-5 for a, b in zip(once, repeated, strict=True)), (once, repeated)
        works = {"once": lambda: reward.score(group, {}), "repeated": lambda: _per_completion(reward, group)}
        seconds = interleaved_seconds(works, options.repeats, reward.encoder.model.device)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "date": date.today().isoformat(),
        "machine": machine(reward.encoder.model.device),
        "frames": options.frames,
        "completions": options.group,
        "encodings": {"once": options.frames + options.group, "repeated": (options.frames + 1) * options.group},
        "seconds": medians,
        "time_ratio": medians["repeated"] / medians["once"],
    }
    print(json.dumps(result, indent=2))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _per_completion(reward: SemanticReward, group: RewardInput) -> list[float]:
    """As in the published code: each completion brings its own copy of the frames."""
    scores = []
    for index in range(len(group.completions)):
        alone = RewardInput(
            record_id=group.record_id,
            problem_type=group.problem_type,
            problem=group.problem,
            solution=group.solution,
            completions=group.completions[index : index + 1],
            completion_tokens=group.completion_tokens[index : index + 1],
            truncated=group.truncated[index : index + 1],
            frames=group.frames,
        )
        scores += reward.score(alone, {})
    return scores


def _group(frames: int, completions: int) -> RewardInput:
    generator = torch.Generator().manual_seed(0)
    words = ("a", "red", "blue", "green", "ball", "moves")
    texts = tuple(f"<think>I look. {words[i % 6]} {words[(i // 6) % 6]} ball</think>" for i in range(completions))
    return RewardInput(
        record_id="0",
        problem_type=ProblemType.FREE_FORM,
        problem="?",
        solution="<answer>a ball</answer>",
        completions=texts,
        completion_tokens=(9,) * completions,
        truncated=(False,) * completions,
        frames=torch.randint(0, 256, (frames, 3, 112, 112), dtype=torch.uint8, generator=generator),
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "semantic_reward.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
