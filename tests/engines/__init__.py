"""Real engines for the tests: getting them, the tiny models they serve, running them, and the gateway in front."""
