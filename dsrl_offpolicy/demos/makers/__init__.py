"""A file per way to record demonstrations, and what several of them share."""
