"""Experiments: one script a question; what they share lives in `experiments.engine`."""
