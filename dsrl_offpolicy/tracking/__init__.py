"""Log a run: its folder, progress on the terminal, and the seam for loggers."""
