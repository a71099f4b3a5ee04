"""What all tests share: the fixtures of real engines. A test that needs an engine which can't be had here is skipped."""

pytest_plugins = ["tests.engines.fixtures"]
