"""Action distributions in NumPy: probabilities, mode, draw and log-probability, row by row."""
