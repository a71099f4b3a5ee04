"""A gateway of several processes: a parent that knows the backends, and workers that serve. See docs/workers.md."""
