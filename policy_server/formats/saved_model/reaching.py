"""Operations of a graph that reach beyond its numbers: files, networks, processes.

A SavedModel is a program. TensorFlow runs whatever operation stands in it, so that a file of
somebody else's could read and write files of the server, or end it. A policy needs none of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from policy_server.errors import ModelError
from policy_server.formats.saved_model import slim_tensorflow as tf

__all__ = ["refuse_reaching"]

# By name, since TensorFlow calls some of them free of state: those that read or write a file, talk
# to another process, wait for one, end this one, or read memory by an address.
_REACHING = re.compile(
    r"ReadFile|WriteFile|MatchingFiles|ImmutableConst|LoadAndRemapMatrix|FileSystem\w*"
    r"|\w*FromTextFile(V2)?|GenerateVocabRemapping|FixedUnigramCandidateSampler|Skipgram"
    r"|Save(V2|Slices)?|DistributedSave|MergeV2Checkpoints|DTensor\w*|DumpTensor"
    r"|\w*Dataset\w*|\w*Iterator\w*|\w*Reader(V2)?|Reader[A-Z]\w*|RecordInput"
    r"|\w*SummaryWriter|Create\w*Writer|Write\w+|ImportEvent|\w*Proto(V2)?|\w*StatisticsSaver"
    r"|Debug\w*|Copy(Host)?|Abort|Sleep\w*|\w*Rpc\w*|RemoteCall|_?(Host)?(Send|Recv)|Collective\w*"
    r"|\w*TPU\w*|\w*Tpu\w*|\w*Nccl\w*|XlaCustomCall\w*|Xla(Send|Recv)\w*|\w*XlaHost\w*"
    r"|\w*Queue\w*|Barrier\w*|\w*Mutex\w*|\w*Session(Handle|Tensor)\w*|(Unb|B)atch|BatchFunction"
    r"|MlirPassthroughOp"
)
# Of the others, those that TensorFlow calls stateful are refused, but for these: random numbers,
# variables, tables and lists in memory, branches, loops and functions, checks.
_KEEPING_STATE = re.compile(
    r"Random\w+|ParameterizedTruncatedNormal|TruncatedNormal|Multinomial|NonDeterministicInts"
    r"|Stateful(Uniform|StandardNormal|TruncatedNormal|RandomBinomial)\w*|Rng\w+"
    r"|StatelessRandomGetAlg|Timestamp|SampleDistortedBoundingBox(V2)?"
    r"|(Uniform|LogUniform|LearnedUnigram|ThreadUnsafeUnigram|All)CandidateSampler"
    r"|\w*Variable\w*|_?VarHandle\w*|VarIsInitializedOp|DestroyResourceOp|DisableCopyOnRead"
    r"|Resource(Apply|SparseApply|Scatter|Gather|CountUpTo|StridedSlice)\w*|Restore(V2|Slice)?"
    r"|\w*HashTable\w*|LookupTable\w+|InitializeTableV2|TensorArray\w*|Stack\w*|Empty|DeepCopy"
    r"|If|_If|While|_While|Case|\w*PartitionedCall|XlaLaunch|XlaCallModule|XlaIf|XlaWhile"
    r"|_Arg|_Retval|_DeviceArg|_DeviceRetval|GuaranteeConst|DeviceIndex|CudnnRNN\w*"
    r"|PyFunc|EagerPyFunc|Assert|CheckNumerics\w*|Print(V2)?|GraphDefVersion|SyncDevice"
)
_STREAM = "output_stream"
_ANY_STREAM = re.compile(rb"stdout|stderr|log\(\w+\)")


def refuse_reaching(graph_def: Any) -> None:  # noqa: ANN401 -- TensorFlow is untyped
    """Refuse a graph with an operation that reaches beyond its numbers.

    A Python callback is none: it calls a function of the process that trained the policy, which
    this one does not have.

    Args:
        graph_def: the nodes that are about to be run; of the library's functions, those count that
            they call.

    Raises:
        ModelError: naming the operation.
    """
    functions = {function.signature.name: function for function in graph_def.library.function}
    for node in _called(graph_def.node, functions):
        if _is_reaching(node):
            raise ModelError(
                f"saved_model.pb: has the operation {node.op} ('{node.name}'), which reaches "
                "beyond the policy's own numbers, to files, the network or the process; export the "
                "policy without it"
            )


def _called(nodes: Iterable[Any], functions: Mapping[str, Any]) -> Iterator[Any]:
    """Yield nodes, and those of all functions that they call."""
    waiting, known = list(nodes), set[str]()
    while waiting:
        node = waiting.pop()
        yield node
        for name in {node.op, *_names_in(node)}:
            if name in functions and name not in known:
                known.add(name)
                waiting.extend(functions[name].node_def)


def _names_in(node: Any) -> Iterator[str]:  # noqa: ANN401 -- TensorFlow is untyped
    for value in node.attr.values():
        yield value.func.name
        for item in value.list.func:
            yield item.name


def _is_reaching(node: Any) -> bool:  # noqa: ANN401 -- TensorFlow is untyped
    if _REACHING.fullmatch(node.op) is not None:
        return True
    stream = node.attr[_STREAM].s if _STREAM in node.attr else b"stderr"
    if _ANY_STREAM.fullmatch(stream) is None:
        return True
    known = tf.op_def_registry.get(node.op)
    return known is not None and known.is_stateful and _KEEPING_STATE.fullmatch(node.op) is None
