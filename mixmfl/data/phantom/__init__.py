"""Simulated patients, scanners and hospitals."""
