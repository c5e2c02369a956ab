"""A model file and a case to a mask."""
