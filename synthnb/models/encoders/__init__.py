"""Encoders: what was heard, as a condition for the field."""
