"""The loop of a search: its schedule, and the tuner that is driven by it."""
