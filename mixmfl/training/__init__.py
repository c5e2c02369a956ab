"""Training on one device; independent of any server."""
