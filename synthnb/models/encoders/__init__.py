"""Encoders: what was heard, as tokens for the field.

An encoder is made with the shapes of what it needs, `{"mel": (channels, bands, frames)}`, and the width of a token. It
says what it `needs`; `forward(target, source, known)` takes two sounds, each a dict with those names, and `known
(batch, 1)`, 1 where there is a source and 0 where its sound must not matter; it gives `(batch, tokens, dim)`.
"""

from synthnb.models.encoders.mel import MelEncoder

ENCODERS = {"mel": MelEncoder}
