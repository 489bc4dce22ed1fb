"""Files on disk: checkpoints and their versions, atomic writes, rows of metrics, checks of untrusted values."""
