"""From a policy that NumPy computes to an .onnx file: `model_writing` makes the whole file."""
