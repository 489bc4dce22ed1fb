"""Read run folders, finished or not: health checks, learning curves, comparisons over seeds; and probes."""
