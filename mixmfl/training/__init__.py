"""Gradient steps at one place; knows no server."""
