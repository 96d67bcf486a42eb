"""The parts of TensorFlow that a policy is loaded and run with, under TensorFlow's own names.

`import tensorflow` executes the package's `__init__`, which also brings Keras, LiteRT, data
pipelines and distribution strategies: more than twice the time, and 200 MB that serving does not
use. So each name is imported from the module that defines it. A program that imports TensorFlow
before or after gets all of it, with the same classes.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from types import ModuleType

from policy_server.formats.saved_model.quiet_import import quiet_import
from policy_server.installation import require

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

logger = getLogger(__name__)

_PACKAGE = "tensorflow"


@contextmanager
def _without_its_init() -> Iterator[None]:
    """Import modules of TensorFlow in the block without executing the package's `__init__`."""
    if _PACKAGE in sys.modules:
        yield
        return
    require("tensorflow", use="loading saved_model.pb")
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None, "it is installed"
    package = ModuleType(_PACKAGE)
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations or ())
    sys.modules[_PACKAGE] = package
    try:
        yield
    finally:
        # A later `import tensorflow` executes it after all, and finds these modules imported.
        del sys.modules[_PACKAGE]


try:
    with quiet_import(), _without_its_init():
        from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
        from tensorflow.python.client.session import Session
        from tensorflow.python.compat import v2_compat
        from tensorflow.python.framework import dtypes, errors, op_def_registry
        from tensorflow.python.framework.constant_op import constant
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants
        from tensorflow.python.framework.dtypes import bool  # noqa: A004 -- TensorFlow's own name
        from tensorflow.python.framework.importer import import_graph_def
        from tensorflow.python.framework.ops import Graph
        from tensorflow.python.framework.tensor_util import (
            MakeNdarray as make_ndarray,  # noqa: N813 -- its public name
        )
        from tensorflow.python.framework.tensor_util import make_tensor_proto
        from tensorflow.python.framework.versions import VERSION
        from tensorflow.python.grappler import tf_optimizer
        from tensorflow.python.ops.array_ops import fill, ones, placeholder, reshape, zeros
        from tensorflow.python.ops.array_ops import shape_v2 as shape
        from tensorflow.python.ops.array_ops_stack import stack
        from tensorflow.python.ops.math_ops import cast
        from tensorflow.python.platform import tf_logging as logging
        from tensorflow.python.proto_exports import ConfigProto
        from tensorflow.python.training.saver import export_meta_graph, import_meta_graph

        # As `tensorflow.__init__` does: version 2's behaviour holds for graphs too.
        v2_compat.enable_v2_behavior()
except ImportError as error:
    logger.warning("tensorflow_parts_moved", extra={"reason": str(error)})
    from policy_server.formats.saved_model.whole_tensorflow import (
        VERSION,
        ConfigProto,
        Graph,
        Session,
        bool,  # noqa: A004 -- TensorFlow's own name
        cast,
        constant,
        convert_variables_to_constants,
        dtypes,
        errors,
        export_meta_graph,
        fill,
        import_graph_def,
        import_meta_graph,
        logging,
        make_ndarray,
        make_tensor_proto,
        meta_graph_pb2,
        ones,
        op_def_registry,
        placeholder,
        reshape,
        saved_model_pb2,
        shape,
        stack,
        tf_optimizer,
        zeros,
    )
