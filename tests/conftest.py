"""What all tests share: the fixtures of real engines, and how hypothesis runs. A test whose engine can't be had here is
skipped."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.engines.fixtures"]

# How fast this machine is at the moment is nothing that a test may fail of.
settings.register_profile("illm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("illm")
