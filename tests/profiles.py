"""What is left for the night: tests marked nightly (`--nightly`), and most examples of some properties.

`--hypothesis-profile nightly` tries 500 examples in the tests that try few in CI.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

NIGHTLY = "nightly"
settings.register_profile(NIGHTLY, max_examples=500)


def few(examples: int) -> settings:
    """Return the settings of a property test whose examples take long: so many of them, or those of the profile."""
    count = settings.default.max_examples if settings.get_current_profile_name() == NIGHTLY else examples
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="also run the tests that are too slow for CI")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked nightly."""
    if not config.getoption("--nightly"):
        left_out = [item for item in items if item.get_closest_marker(NIGHTLY)]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
