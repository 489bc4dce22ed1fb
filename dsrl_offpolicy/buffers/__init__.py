"""Replay of macro-transitions, in memory and on disk."""
