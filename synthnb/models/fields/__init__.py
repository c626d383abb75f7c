"""Vector fields: the velocity of a patch, given a condition."""
