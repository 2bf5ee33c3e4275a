"""What a model is asked and how its answer is read: one coordinate and syntax layer for every family, both ways."""
