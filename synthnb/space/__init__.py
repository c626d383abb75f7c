"""Parameters as data: `parameter` (one of them), `space` (all), `edits` (of a patch), `fit` (a prior to presets)."""

from synthnb.space.parameter import NOTE_FIELDS, Note, Parameter, Patch, SpaceError
from synthnb.space.space import SPACES, ParameterSpace

LOUDNESS_FLOOR = -55.0  # LUFS; what is quieter counts as silent

__all__ = [
    "LOUDNESS_FLOOR",
    "NOTE_FIELDS",
    "SPACES",
    "Note",
    "Parameter",
    "ParameterSpace",
    "Patch",
    "SpaceError",
]
