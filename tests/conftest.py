"""What all tests share: the fixtures of real engines. A test whose engine can't be had here is skipped."""

pytest_plugins = ["tests.engines.fixtures"]
