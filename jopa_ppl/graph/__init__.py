"""Programs as factor graphs: tracing, proof of structure. No inference in here."""
