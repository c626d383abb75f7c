"""Parameters as data: `parameter` (one of them), `space` (all), `edits` (of a patch), `fit` (a prior to presets).

`text` reads and writes a space as YAML; `faults` says what makes no sense in one.
"""

from synthnb.space.parameter import LOUDNESS_FLOOR, NOTE_FIELDS, Note, Parameter, Patch, SpaceError
from synthnb.space.space import SPACES, ParameterSpace

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
