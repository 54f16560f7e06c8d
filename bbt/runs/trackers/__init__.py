"""Trackers are observers that hand a run's figures to a program that keeps those of many runs, one such program a
file."""
