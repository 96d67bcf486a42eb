"""A policy's network as NumPy operations: built, held against the model, kept, computed."""
