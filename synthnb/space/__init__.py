"""Parameters as data: `parameter` (one of them), `space` (all), `edits` (of a patch), `fit` (a prior to presets)."""

from synthnb.space.parameter import NOTE_FIELDS, Note, Parameter, Patch, SpaceError
from synthnb.space.space import SPACES, ParameterSpace

__all__ = ["NOTE_FIELDS", "SPACES", "Note", "Parameter", "ParameterSpace", "Patch", "SpaceError"]
