"""Vector fields: which way a patch moves, given what was heard and the patch to go on from.

A field is made with the space, whose `columns` and `modules` it may use, the width of the encoder's tokens, and `dim`,
`hidden`, `depth`. `prepare(tokens, source, known)` gives what is the same for all times and candidates: a list of
tensors, batch first. `forward(x, t, condition)` takes `x (batch, width)`, `t (batch,)` in [0, 1) and that list; it
gives two numbers for every column: the velocity, and the log odds that the source's value is kept. `Precondition` wraps
it: `x` and `source` come standardised, the velocity is what a linear guess leaves over.
"""

from synthnb.models.fields.mlp import MLP

FIELDS = {"mlp": MLP}
