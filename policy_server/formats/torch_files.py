"""Naming a file of PyTorch by what is written in it, and what gives the policy in its place.

The file's pickle is read as a list of words: nothing of it is made, and nothing runs.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Callable, Collection, Mapping

from policy_server.files.archives import is_bounded

__all__ = [
    "PROGRAM",
    "SCRIPT",
    "describe_tensors",
    "describe_torch_file",
    "is_torch_program",
    "is_torch_script",
]

_MOST_BYTES = 16 * 1024 * 1024
_MOST_OPERATIONS = 100_000
_ONNX = (
    "export the network that gives the actions as ONNX, "
    "`torch.onnx.export(actor, observation, 'policy.onnx', dynamo=False)`"
)
# The parts of any tensors by name.
_PLAIN = ("torch.", "collections.", "numpy.", "_codecs.", "builtins.", "__builtin__.")
# The attributes of each `torch.nn.Module`, as its pickle has them.
_MODULE_PARTS = frozenset(("_modules", "_parameters"))
_LONGEST_NAME = 200
# The phrases for the two kinds that hold a network.
SCRIPT = (
    "a TorchScript module, whose code is not run; in RSL-RL export "
    "`runner.export_policy_to_onnx(FOLDER)`, in Isaac Lab `export_policy_as_onnx`, else "
    "`torch.onnx.export(torch.jit.load('policy.pt'), observation, 'policy.onnx', dynamo=False)`"
)
PROGRAM = (
    "a torch.export program; export it as ONNX, "
    "`torch.onnx.export(torch.export.load('policy.pt2'), (), 'policy.onnx')`"
)


def describe_torch_file(archive: zipfile.ZipFile) -> str | None:
    """Return a phrase that names an archive of PyTorch, with what helps in its library.

    Args:
        archive: the open file.

    Returns:
        The phrase; None for an archive that PyTorch did not write.
    """
    # PyTorch puts the members in a folder that is named after the file; a program's may have none.
    names = {name.partition("/")[2]: name for name in archive.namelist()}
    if is_torch_program(names) or is_torch_program(archive.namelist()):
        return PROGRAM
    if "data.pkl" not in names:
        return None
    if is_torch_script(names):
        return SCRIPT
    member = archive.getinfo(names["data.pkl"])
    if member.file_size > _MOST_BYTES or not is_bounded(member):
        return describe_tensors(b"")
    return describe_tensors(archive.read(member))


def is_torch_script(names: Collection[str]) -> bool:
    """Return whether the members are those of a TorchScript module.

    Args:
        names: below the folder that is named after the file.
    """
    return "constants.pkl" in names and any(name.startswith("code/") for name in names)


def is_torch_program(names: Collection[str]) -> bool:
    """Return whether the members are those of a torch.export program.

    Args:
        names: as `is_torch_script` takes them.
    """
    return "archive_format" in names or "serialized_exported_program.json" in names


def describe_tensors(content: bytes) -> str:
    """Return a phrase that names what `torch.save` wrote.

    Args:
        content: its pickle, of which the words alone are read.
    """
    words, classes = _words_of(content)
    own = next((name for name in classes if not name.startswith(_PLAIN)), None)
    if own is not None and own.startswith("ray."):
        return (
            f"a whole PyTorch module ({own[:80]}), which only its own code can load; give the "
            "checkpoint that `Algorithm.save` or `save_to_path` writes"
        )
    # Spaces and settings of other libraries lie beside weights too.
    if not _MODULE_PARTS.isdisjoint(words):
        of = "" if own is None else f" ({own[:80]})"
        return f"a whole PyTorch module{of}, which only its own code can load; {_ONNX}"
    known = next((phrase for phrase, is_it in _KINDS.items() if is_it(words)), None)
    beside = "" if own is None else f", with objects such as {own[:80]},"
    return known or f"a PyTorch file of weights{beside} without their network; {_ONNX}"


def _words_of(content: bytes) -> tuple[set[str], list[str]]:
    """Return the texts of a pickle, and the names of the classes and functions in it."""
    words: set[str] = set()
    classes: list[str] = []
    last = ["", ""]
    try:
        for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
            if number >= _MOST_OPERATIONS:
                break
            if operation.name == "GLOBAL":
                classes.append(str(argument).replace(" ", ".", 1))
            elif operation.name == "STACK_GLOBAL":
                classes.append(".".join(last))
            elif isinstance(argument, str):
                words.add(argument)
                # One text may stand in many names.
                last = [last[1], argument[:_LONGEST_NAME]]
    except (ValueError, IndexError):
        # A damaged file is named by what could be read of it.
        return words, classes
    return words, classes


def _has(*wanted: str) -> Callable[[Collection[str]], bool]:
    return lambda words: all(word in words for word in wanted)


def _begins(*starts: str) -> Callable[[Collection[str]], bool]:
    return lambda words: any(word.startswith(starts) for word in words)


def _is_optimizer(words: Collection[str]) -> bool:
    return "param_groups" in words and not any(word.endswith(".weight") for word in words)


def _is_rsl_rl(words: Collection[str]) -> bool:
    return {"iter", "infos"} <= set(words) and any(
        word in words for word in ("model_state_dict", "actor_state_dict")
    )


_KINDS: Mapping[str, Callable[[Collection[str]], bool]] = {
    "a policy of stable-baselines3 as `model.policy.save` writes it: weights with their spaces; "
    "give the .zip that `model.save` wrote": _has(
        "state_dict", "observation_space", "action_space"
    ),
    "the state of a PyTorch optimizer, without the network; give the policy's own file": (
        _is_optimizer
    ),
    "a checkpoint of RSL-RL: weights without their network; export "
    "`runner.export_policy_to_onnx(FOLDER)`, in Isaac Lab `export_policy_as_onnx`": _is_rsl_rl,
    "a checkpoint of Unity ML-Agents; give the .onnx that its training writes beside it": _has(
        "Policy", "global_step"
    ),
    f"a checkpoint of rl_games: weights without their network; {_ONNX}": _begins("a2c_network."),
    f"a checkpoint of Sample Factory: weights without their network; {_ONNX}": _has(
        "train_step", "env_steps"
    ),
    "the weights of a stable-baselines3 policy, without its spaces; give the whole .zip that "
    "`model.save` wrote": _begins("action_net.", "mlp_extractor.", "actor.latent_pi."),
    "the weights of RLlib's RLModule, without its spaces; give the folder that `save_to_path` "
    "wrote": _begins("encoder.encoder.", "encoder.actor_encoder.", "pi_encoder."),
    f"weights as CleanRL saves them, without their network; {_ONNX}": _begins(
        "actor_mean.", "actor_logstd", "fc_mean.", "q_network."
    ),
    f"weights as Tianshou saves them, without their network; {_ONNX}": lambda words: any(
        "preprocess.model." in word for word in words
    ),
}
