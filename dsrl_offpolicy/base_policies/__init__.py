"""Frozen maps from observation and noise to an action chunk: ours, published ones, and loading any by name."""
