"""Programs and libraries that the launcher's tests put in place of what this machine hasn't got."""
