"""Datasets: rendering them (`generate`), their HDF5 layout (`shards`), feeding a training (`feed`)."""

# What a dataset is made of where nothing else is said.
TRAIN, VAL, TEST = 1000, 100, 100  # clips
EDITS = 1  # of every clip that is drawn from the prior
SHARD_SIZE = 500  # clips
KEEP = ("audio", "mel", "compact")  # the first is the default
