"""What no hospital runs."""
