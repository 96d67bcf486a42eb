"""The YAML that LEAPP, the exporter of Isaac Lab 3, writes beside an .onnx file.

Source: `leapp`, whose description names the models of a pipeline with their digests, and the
outputs that become inputs of the next step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy_server.errors import ModelError
from policy_server.formats.onnx.model_file import OnnxModel
from policy_server.schema import load_foreign_yaml

__all__ = ["Description", "read_description"]

_MOST_BYTES = 1_000_000
# Of a safetensors file: the length of its header, and the key that is no tensor's.
_HEADER_BYTES = 8
_METADATA = "__metadata__"
# The letters of a file's name in a message.
_SHOWN = 100
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Description:
    """The description of a graph.

    Attributes:
        flow: the outputs that become inputs of the next step, by the inputs' names.
        finding: what was read, in words.
    """

    flow: Mapping[str, str]
    finding: str


def read_description(files: Mapping[str, Path], model: OnnxModel) -> Description | None:
    """Return the description beside a graph, after checking that it is this graph's.

    Args:
        files: the model's files by their names below its folder.
        model: the graph.

    Returns:
        The description; None where there is none.

    Raises:
        ModelError: if it is of another graph, or of several, or its state starts with other
            numbers than zeros.
    """
    for name, path in files.items():
        if "/" in name or not name.endswith(_SUFFIXES) or path.stat().st_size > _MOST_BYTES:
            continue
        try:
            content: Any = load_foreign_yaml(path.read_bytes())
            models, pipeline = content["models"], content["pipeline"]
            found = {str(key): item["parameters"] for key, item in models.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            # schema.yaml, or another program's.
            continue
        return _Description(files, model, name).read(found, models, pipeline)
    return None


class _Description:
    def __init__(self, files: Mapping[str, Path], model: OnnxModel, name: str) -> None:
        self._files = files
        self._model = model
        self._name = name

    def read(
        self,
        parameters: Mapping[str, Any],
        models: Mapping[str, Any],
        pipeline: Any,  # noqa: ANN401 -- a foreign file's content
    ) -> Description:
        if len(parameters) != 1:
            names = ", ".join(parameters) or "none"
            raise ModelError(
                f"{self._name}: describes a pipeline of {len(parameters)} models ({names}), "
                "expected one; export the whole pipeline as one node"
            )
        ((node, own),) = parameters.items()
        self._check_digest(own)
        try:
            self._check_initial_values(pipeline.get("initial_values"))
            flows = pipeline.get("feedback_flow") or {}
            flow = {
                target.removeprefix(f"{node}/"): source.removeprefix(f"{node}/")
                for source, targets in flows.items()
                for target in targets
            }
            inputs = [_name_of(item) for item in models[node]["inputs"]]
            outputs = [_name_of(item) for item in models[node]["outputs"]]
        except (TypeError, KeyError, AttributeError, ValueError, OSError) as error:
            raise ModelError(f"{self._name}: is no whole description; export both again") from error
        ours = (
            [item.name for item in self._model.inputs],
            [item.name for item in self._model.outputs],
        )
        named = self._renamed(flow, _by_place(inputs, ours[0]), _by_place(outputs, ours[1]))
        states = ", ".join(flow) or "none"
        return Description(named, f"read: {self._name}, a description by LEAPP; state: {states}")

    def _renamed(
        self, flow: Mapping[str, str], inputs: Mapping[str, str], outputs: Mapping[str, str]
    ) -> Mapping[str, str]:
        """Return the flow by the graph's own names, which stand in the description's order."""
        known = {item.name for item in (*self._model.inputs, *self._model.outputs)}
        return {
            before if before in known else inputs.get(before, before): (
                after if after in known else outputs.get(after, after)
            )
            for before, after in flow.items()
        }

    def _check_digest(self, parameters: Any) -> None:  # noqa: ANN401 -- a foreign file's content
        stated = parameters.get("sha256sum") if isinstance(parameters, Mapping) else None
        path = self._files[self._model.name]
        if stated is not None and hashlib.sha256(path.read_bytes()).hexdigest() != stated:
            raise ModelError(
                f"{self._name}: describes another file than {self._model.name}, whose SHA-256 "
                "differs; copy both again, as they were exported together"
            )

    def _check_initial_values(self, name: object) -> None:
        """Refuse a state that begins with other numbers than zeros."""
        if name is None:
            return
        if not isinstance(name, str):
            raise TypeError("expected the name of a file")
        path = self._files.get(name)
        if path is None:
            raise ModelError(
                f"{self._name}: needs {name[:_SHOWN]} beside it; copy the whole folder"
            )
        content = path.read_bytes()
        try:
            numbers = _numbers_in(content)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelError(
                f"{self._name}: {name[:_SHOWN]} beside it is damaged; copy or export both again"
            ) from error
        if numbers.count(0) < len(numbers):
            raise ModelError(
                f"{self._name}: its state begins with the numbers of {name}, expected zeros; "
                "export a policy whose memory starts at zero"
            )


def _numbers_in(content: bytes) -> bytes:
    """Return the bytes of all numbers in a safetensors file, after checking that it is whole.

    Source: the format's description: the length of the header, the header in JSON, and the tensors'
    numbers one after another, without a gap between them.

    Args:
        content: the file's.

    Raises:
        AttributeError, KeyError, TypeError, ValueError, RecursionError: if it is no such file.
    """
    end = _HEADER_BYTES + int.from_bytes(content[:_HEADER_BYTES], "little")
    header = json.loads(content[_HEADER_BYTES:end])
    numbers, reached = content[end:], 0
    places = sorted(item["data_offsets"] for name, item in header.items() if name != _METADATA)
    for first, behind in places:
        if first != reached or behind < first:
            raise ValueError("the numbers of two tensors overlap, or lie apart")
        reached = behind
    if reached != len(numbers):
        raise ValueError(f"has {len(numbers)} bytes of numbers, expected {reached}")
    return numbers


def _name_of(item: Mapping[str, Any]) -> str:
    name = item["name"]
    if not isinstance(name, str):
        raise TypeError("expected a name")
    return name


def _by_place(stated: Sequence[str], own: Sequence[str]) -> Mapping[str, str]:
    """Return the graph's names by the description's; empty where it has more or fewer of them.

    An exporter drops what is not used, and the places of what follows then tell nothing.
    """
    return dict(zip(stated, own, strict=True)) if len(stated) == len(own) else {}
