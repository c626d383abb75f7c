"""Surge XT: what is special about it as a plugin, and its official release."""
