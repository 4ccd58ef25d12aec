"""Beyond one draft model."""
