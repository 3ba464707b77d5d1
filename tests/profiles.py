"""How many examples hypothesis tries: `--hypothesis-profile nightly` tries 500 in the tests that try few in CI."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

NIGHTLY = "nightly"
settings.register_profile(NIGHTLY, max_examples=500)


def few(examples: int) -> settings:
    """Return the settings of a property test whose examples take long: so many of them, or those of the profile."""
    count = settings.default.max_examples if settings.get_current_profile_name() == NIGHTLY else examples
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
