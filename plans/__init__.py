"""Shipped plan presets (JSON), read by `mixmfl.planning.plans.load_preset`."""
