"""Run a policy for seeded episodes, and put an interval on what comes out."""
