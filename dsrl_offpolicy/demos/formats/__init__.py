"""A file per format of demonstrations."""
