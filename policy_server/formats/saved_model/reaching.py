"""Operations of a graph that reach beyond its numbers: files, networks, processes.

A SavedModel is a program. TensorFlow runs whatever operation stands in it, so that a file of
somebody else's could read and write files of the server, or end it. A policy needs none of these,
but for the one file that its weights are read from, whose name the saver is given at loading.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from policy_server.errors import ModelError
from policy_server.formats.saved_model import slim_tensorflow as tf

__all__ = ["LONGEST_OPERATION", "refuse_reaching"]

LONGEST_OPERATION = 200
"""More letters than the name of any operation of TensorFlow's has.

What is behind them is not matched, which takes time by the square of a name's length.
"""


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
# They read numbers of any checkpoint; the first input names it.
_RESTORING = re.compile(r"Restore(V2|Slice)?")
# Calls whose inputs are the function's arguments, in their order; others choose among functions.
_CALL = re.compile(r"(Stateful)?PartitionedCall")
_STREAM = "output_stream"
_ANY_STREAM = re.compile(rb"stdout|stderr|log\(\w+\)")


def refuse_reaching(
    graph_def: Any,  # noqa: ANN401 -- TensorFlow is untyped
    *,
    policy: Collection[str],
    checkpoint: str,
) -> None:
    """Refuse a graph with an operation that reaches beyond its numbers.

    A Python callback is none: it calls a function of the process that trained the policy, which
    this one does not have.

    Args:
        graph_def: the nodes that are about to be run; of the library's functions, those count that
            they call.
        policy: the names of the nodes that answer; the others restore their variables.
        checkpoint: the tensor that the saver is given the checkpoint's name as; empty where there
            is no saver.

    Raises:
        ModelError: naming the operation.
    """
    for node, reads_own in _Calls(graph_def).followed(policy, checkpoint):
        if (_RESTORING.fullmatch(node.op) and not reads_own) or _is_reaching(node):
            raise ModelError(
                f"saved_model.pb: has the operation {node.op} ('{node.name}'), which reaches "
                "beyond the policy's own numbers, to files, the network or the process; export the "
                "policy without it"
            )


class _Calls:
    """The nodes of a graph and of the functions that they call, each with what it may read."""

    def __init__(self, graph_def: Any) -> None:  # noqa: ANN401 -- TensorFlow is untyped
        """Own a list of what is still to be followed, for one graph.

        Args:
            graph_def: the graph.
        """
        self._nodes = graph_def.node
        self._functions = {item.signature.name: item for item in graph_def.library.function}
        # Functions with those of their arguments that are the checkpoint's name.
        self._waiting: list[tuple[str, frozenset[str]]] = []
        self._known: set[tuple[str, frozenset[str]]] = set()

    def followed(self, policy: Collection[str], checkpoint: str) -> Iterator[tuple[Any, bool]]:
        """Yield each node, and whether its first input is the name of the policy's checkpoint.

        Args:
            policy: the names of the nodes that answer: the name is not given to them.
            checkpoint: the tensor that is the checkpoint's name.
        """
        answering = [node for node in self._nodes if node.name in policy]
        restoring = [node for node in self._nodes if node.name not in policy]
        yield from self._each(answering, frozenset())
        yield from self._each(restoring, frozenset({_tensor(checkpoint)} if checkpoint else ()))
        while self._waiting:
            name, own = self._waiting.pop()
            yield from self._each(self._functions[name].node_def, own)

    def _each(self, nodes: Iterable[Any], own: frozenset[str]) -> Iterator[tuple[Any, bool]]:
        nodes = list(nodes)
        own = _passed_on(nodes, own)
        for node in nodes:
            yield node, bool(node.input) and _tensor(node.input[0]) in own
            for name in {node.op, *_names_in(node)} & self._functions.keys():
                call = name, self._own_arguments(name, node, own)
                if call not in self._known:
                    self._known.add(call)
                    self._waiting.append(call)

    def _own_arguments(self, name: str, node: Any, own: Collection[str]) -> frozenset[str]:  # noqa: ANN401 -- TensorFlow is untyped
        """Return the arguments of a called function that are the checkpoint's name."""
        if node.op != name and not _CALL.fullmatch(node.op):
            return frozenset()
        arguments: Sequence[Any] = self._functions[name].signature.input_arg
        return frozenset(
            _tensor(argument.name)
            for argument, item in zip(arguments, node.input, strict=False)
            if _tensor(item) in own
        )


def _passed_on(nodes: Iterable[Any], own: frozenset[str]) -> frozenset[str]:
    """Return tensors with those that are the same."""
    if not own:
        return own
    readers: dict[str, list[str]] = {}
    for node in nodes:
        if node.op == "Identity" and node.input:
            readers.setdefault(_tensor(node.input[0]), []).append(f"{node.name}:0")
    found, waiting = set(own), list(own)
    while waiting:
        same = set(readers.get(waiting.pop(), ())) - found
        found |= same
        waiting += same
    return frozenset(found)


def _tensor(item: str) -> str:
    """Return an input in the form `node:0`; functions write `argument` and `node:output:0`."""
    name, *port = item.split(":")
    return f"{name}:{port[-1] if port else 0}"


def _names_in(node: Any) -> Iterator[str]:  # noqa: ANN401 -- TensorFlow is untyped
    for value in node.attr.values():
        yield value.func.name
        for item in value.list.func:
            yield item.name


def _is_reaching(node: Any) -> bool:  # noqa: ANN401 -- TensorFlow is untyped
    if _REACHING.fullmatch(node.op[:LONGEST_OPERATION]) is not None:
        return True
    stream = node.attr[_STREAM].s if _STREAM in node.attr else b"stderr"
    if _ANY_STREAM.fullmatch(stream) is None:
        return True
    known = tf.op_def_registry.get(node.op)
    return known is not None and known.is_stateful and _KEEPING_STATE.fullmatch(node.op) is None
