"""Memory by process and part, from sizes alone."""
