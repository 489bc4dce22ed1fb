"""A script per stage, and what all share: run folder, signals, saves, resume."""
