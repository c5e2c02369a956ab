"""Rounds: what sites and the server do and exchange."""
