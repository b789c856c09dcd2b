"""What the paper reports, in percent, to stand beside one's own numbers."""

from __future__ import annotations

from collections.abc import Mapping

SOURCE = "VideoRFT, arXiv 2505.12434 (NeurIPS 2025), main results"

REFERENCE_MODEL = "VideoRFT-7B"
"""Whose numbers are marked in the chart."""

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "VideoRFT-7B": {
        "vsibench": 36.8,
        "videommmu": 51.1,
        "mmvu": 68.5,
        "mvbench": 62.1,
        "tempcompass": 73.7,
        "videomme": 59.8,
    },
    "Video-R1-7B": {
        "vsibench": 35.8,
        "videommmu": 52.3,
        "mmvu": 63.8,
        "mvbench": 63.9,
        "tempcompass": 73.2,
        "videomme": 59.3,
    },
    "Qwen2.5-VL-7B": {
        "vsibench": 31.8,
        "videommmu": 47.4,
        "mmvu": 61.3,
        "mvbench": 59.4,
        "tempcompass": 69.2,
        "videomme": 52.8,
    },
    "VideoRFT-3B": {
        "vsibench": 32.5,
        "videommmu": 41.1,
        "mmvu": 55.1,
        "mvbench": 59.5,
        "tempcompass": 61.0,
        "videomme": 45.4,
    },
}
"""Model -> benchmark -> accuracy. Video-MME without subtitles, MMVU's multiple-choice questions."""
