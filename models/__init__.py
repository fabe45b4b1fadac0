"""Programs and networks used by the examples; importable from the repository root."""
