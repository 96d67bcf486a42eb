"""A policy's network as NumPy operations: built, compared with the model, cached, computed."""
