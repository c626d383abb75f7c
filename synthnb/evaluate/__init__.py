"""Measure a model against its baselines."""
