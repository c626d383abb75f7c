"""Datasets: rendering them (`generate`), their HDF5 layout (`shards`), feeding a training (`feed`)."""
