"""Act in environments and turn what happened into macro-transitions."""
