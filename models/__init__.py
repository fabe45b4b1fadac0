"""Programs used by the examples and tests; importable from the repository root."""
