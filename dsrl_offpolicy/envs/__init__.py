"""Environments: the seam for simulators, chunks as macro-steps, many at once. Torch only in ManiSkill's files."""
