"""The parts of TensorFlow by their public names, for a version that has moved them.

Two of them have no public name: without `op_def_registry` an operation's definition is unknown, so
that fewer policies are proved, and without `tf_optimizer` functions are not inlined.
"""

from __future__ import annotations

import tensorflow
from tensorflow import (
    Graph,
    bool,  # noqa: A004 -- TensorFlow's own name
    cast,
    constant,
    dtypes,
    errors,
    fill,
    make_ndarray,
    make_tensor_proto,
    ones,
    reshape,
    shape,
    stack,
    zeros,
)
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

__all__ = [
    "VERSION",
    "ConfigProto",
    "Graph",
    "Session",
    "bool",
    "cast",
    "constant",
    "convert_variables_to_constants",
    "dtypes",
    "errors",
    "export_meta_graph",
    "fill",
    "import_graph_def",
    "import_meta_graph",
    "logging",
    "make_ndarray",
    "make_tensor_proto",
    "meta_graph_pb2",
    "ones",
    "op_def_registry",
    "placeholder",
    "reshape",
    "saved_model_pb2",
    "shape",
    "stack",
    "tf_optimizer",
    "zeros",
]

_v1 = tensorflow.compat.v1

ConfigProto = _v1.ConfigProto
Session = _v1.Session
VERSION = tensorflow.__version__
convert_variables_to_constants = _v1.graph_util.convert_variables_to_constants
export_meta_graph = _v1.train.export_meta_graph
import_graph_def = tensorflow.graph_util.import_graph_def
import_meta_graph = _v1.train.import_meta_graph
logging = _v1.logging
placeholder = _v1.placeholder


class _UnknownOperations:
    """TensorFlow's registry of operations, where it can't be found."""

    @staticmethod
    def get(_operation: str) -> None:
        """Return the definition of an operation: it is unknown."""


try:
    from tensorflow.python.framework import op_def_registry
except ImportError:
    op_def_registry = _UnknownOperations()
try:
    from tensorflow.python.grappler import tf_optimizer
except ImportError:
    tf_optimizer = None
