"""No requirement admits a release that is malicious or has a known way to run the code of a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

REFUSED = {
    "lightning": ("2.6.1", "2.6.2", "2.6.3", "2.6.5"),  # GHSA-w37p-236h-pfx3, CVE-2026-31221, PYSEC-2026-3624
    "torch": ("2.5.1", "2.10.0"),  # CVE-2025-32434, CVE-2026-24747, PYSEC-2026-139: code from torch.load(weights_only)
    "transformers": ("5.4.0", "5.9.0"),  # CVE-2026-5241, CVE-2026-9856: files of a model that write or run elsewhere
    "av": ("17.1.0",),  # CVE-2026-8461 of its FFmpeg 8.1.1
    "pillow": ("12.2.0",),  # CVE-2026-25990 and later ones, fixed in 12.3.0
    "pyarrow": ("23.0.0",),  # CVE-2026-25087
    "sentencepiece": ("0.2.0", "0.2.1"),  # CVE-2026-1260; files that crash 0.2.1 when loaded (its issues 1263 and 1269)
    "jinja2": ("3.1.5",),  # CVE-2025-27516
    "pytest": ("9.0.2",),  # CVE-2025-71176
}
"""Package -> releases with a known advisory, the last of them included."""


def requirements() -> dict[str, Requirement]:
    lines = [
        line for name in ("requirements.txt", "requirements-dev.txt") for line in (ROOT / name).read_text().split("\n")
    ]
    found = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]
    return {requirement.name: requirement for requirement in found}


@pytest.mark.parametrize("name", REFUSED)
def test_releases_with_known_advisories_are_refused(name):
    requirement = requirements()[name]
    assert not [version for version in REFUSED[name] if version in requirement.specifier]
