"""Fail when a file is too large for the repository: weights, videos and data sets belong elsewhere.

Run as `python .ci/large_files.py [FILE ...]`; without files it looks at all that git tracks or has staged.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT_BYTES = 1_000_000


def tracked_files() -> list[Path]:
    """Files in git's index that exist in the working tree."""
    listing = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    return [path for name in listing.split("\0") if name and (path := Path(name)).is_file()]


def main(arguments: list[str]) -> str | None:
    """The complaint, or None when every file is small enough."""
    files = [Path(name) for name in arguments] or tracked_files()
    large = [f"{path}: {size:,} bytes" for path in files if (size := path.stat().st_size) > LIMIT_BYTES]
    if not large:
        return None
    advice = f"A file may have {LIMIT_BYTES:,} bytes. Fetch or generate larger ones when they are needed."
    return "\n".join([*large, advice])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
