"""How many cases a property is tried on; `--hypothesis-profile fuzz` (`make fuzz`) tries many, and others each time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A busy machine is no fault of the code: what must be fast is timed by its own test. Files are shared by the cases of
# a property on purpose; each case writes its own.
COMMON = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("suite", max_examples=60, derandomize=True, **COMMON)
settings.register_profile("fuzz", max_examples=int(os.environ.get("CASES", "1000")), print_blob=True, **COMMON)


def pytest_configure(config) -> None:
    settings.load_profile(config.getoption("--hypothesis-profile") or "suite")
