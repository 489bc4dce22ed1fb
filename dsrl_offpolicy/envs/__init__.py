"""Environments: the seam for simulators, chunks as macro-steps, many at once. No torch outside ManiSkill's files."""
