"""Numbers, pictures and pages of masks; no network."""
