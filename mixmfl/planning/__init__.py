"""Statistics of all sites to plans, and plans to preprocessed cases."""
