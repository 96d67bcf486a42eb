"""Messages of onnx and onnxruntime without the places of their own sources."""

from __future__ import annotations

import pytest

from policy_server.formats.onnx.library_messages import reason_of, remedy_for

GRAPH = (
    "/onnxruntime_src/onnxruntime/core/graph/graph.cc:1357 onnxruntime::Graph::Graph(const "
    "onnxruntime::Model&, const std::unordered_map<std::__cxx11::basic_string<char>, int>&, "
    "std::function<void(int)>, bool) "
)
FAIL = "[ONNXRuntimeError] : 1 : FAIL : "


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            f"{FAIL}Load model from /a/policy.onnx failed:{GRAPH}This is invalid.",
            "This is invalid.",
        ),
        (
            f"{FAIL}{GRAPH}{FAIL}tensorprotoutils.cc:2678 ConstantNodeProtoToTensorProto Constant "
            "node:  has no data attributes\n",
            "Constant node: has no data attributes",
        ),
        (
            "Non-zero status code returned while running Reshape node. Status Message: "
            "/src/reshape_helper.h:50 onnxruntime::ReshapeHelper::ReshapeHelper(const "
            "onnxruntime::TensorShape&, bool) size != 0 was false.",
            "Non-zero status code returned while running Reshape node. Status Message: "
            "size != 0 was false.",
        ),
        (
            "/src/a.cc:1 T* onnxruntime::Of(const T&) const [with T = float; U = int] No (more) b.",
            "No (more) b.",
        ),
        (
            "/project/onnx/version_converter/convert.h:96: assertInVersionRange: Assertion "
            "`version >= first` failed: Warning: invalid version",
            "Warning: invalid version",
        ),
        ("Node () Op (Add) [ShapeInferenceError] Incompatible", None),
        (f"{FAIL}std::bad_alloc", "it takes more memory than there is"),
        (
            f"{FAIL}/src/bfc_arena.cc:359 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, "
            "bool) Failed to allocate memory for requested buffer of size 27200000000",
            "it takes more memory than there is",
        ),
        ("", "ValueError"),
        ("a" * 300, f"{'a' * 200}…"),
        (f"{FAIL}{GRAPH[:-8]}", "ValueError"),
    ],
    ids=[
        "place",
        "two places",
        "helper",
        "template",
        "assertion",
        "plain",
        "memory",
        "memory of one tensor",
        "none",
        "long",
        "cut",
    ],
)
def test_reason_is_in_words_alone(message: str, reason: str | None) -> None:
    assert reason_of(ValueError(message)) == (message if reason is None else reason)


@pytest.mark.parametrize("error", [MemoryError(), MemoryError("Unable to allocate 20. GiB")])
def test_end_of_memory_is_told_with_its_remedy(error: MemoryError) -> None:
    reason = reason_of(error)

    assert reason == "it takes more memory than there is"
    assert remedy_for(reason) == "export a smaller network, or start again with more memory"
    assert remedy_for(reason_of(ValueError("no shape"))) == "export it again"
