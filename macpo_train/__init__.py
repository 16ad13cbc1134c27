"""Training: a dataset and a starting policy in, an adapter out. Knows no rounds and no store."""
