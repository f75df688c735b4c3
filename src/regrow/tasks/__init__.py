"""Tasks: what is learnt and scored, and what a model is told of it."""
