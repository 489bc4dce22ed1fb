"""A file per logger."""
