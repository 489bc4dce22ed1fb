"""A file per simulator."""
