"""What the gateway costs, measured on one machine. See docs/data-path.md for what the figures mean."""
