"""Environments: the seam for simulators, action chunks as macro-steps, many of them at once. Free of torch."""
