"""Pictures with names for the eyes: drawings from packages, scenes of them, rows about them, probes."""
