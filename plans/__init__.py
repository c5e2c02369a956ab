"""Shipped plan presets (JSON), read by `mixmfl.plan.load_preset`."""
