"""Sound in, patch out: find the synthesizer parameters that reproduce a recording."""

__version__ = "0.1.0"
