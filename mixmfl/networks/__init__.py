"""The architecture: encoders, fusion, prototypes."""
