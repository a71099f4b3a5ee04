"""Programs that run beside the gateway, each its own process; never imported by `proxy`, never importing it."""
