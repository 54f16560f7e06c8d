"""Run folders and their log, estimates, reports, observers."""
