"""Keras's layers and functions in NumPy, held against Keras itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from policy_server.errors import ModelError
from tests.support.keras_files import change_config, load, numbers, save

Keras = Any  # keras has no types
# Keras 3.15 converts its variables for NumPy in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ACTION = "actions: {go: {values: action}}"
Build = Callable[[Any], Any]


def shaken(model: Keras) -> Keras:
    """Give every weight a value of its own, statistics positive ones."""
    generator = np.random.default_rng(5)
    for variable in model.weights:
        if not np.issubdtype(variable.dtype, np.floating):
            continue
        values = generator.normal(size=variable.shape) * 0.5
        is_spread = variable.path.endswith("variance")
        variable.assign(np.abs(values) + 0.1 if is_spread else values)
    return model


def compare(
    build: Build,
    shape: tuple[int, ...],
    folder: Path,
    *,
    dtype: str = "float32",
    is_shaken: bool = True,
) -> None:
    """Compare a model's numbers with Keras's on 20 observations."""
    inputs = keras.Input(shape, dtype=dtype)
    # The last layer keeps the file from telling the meaning of its end.
    model = keras.Model(inputs, layers.Activation("linear")(build(inputs)))
    model = shaken(model) if is_shaken else model
    generator = np.random.default_rng(3)
    rows = generator.normal(size=(20, *shape)) * 2
    if dtype != "float32":
        rows = np.abs(rows).round().clip(0, 2)
    theirs = np.asarray(model(rows.astype(dtype))).reshape(20, -1)

    policy = load(save(model, folder), ACTION)

    ours = numbers(policy, rows.reshape(20, -1))
    assert theirs.size
    assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5)


ACTIVATIONS = (
    *("celu", "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh"),
    *("leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid"),
    *("silu", "softmax", "log_softmax", "softplus", "softsign", "swish", "tanh", "tanh_shrink"),
)
ON_VECTORS: dict[str, Build] = {
    "activations": lambda x: layers.Concatenate()(
        [layers.Dense(5, activation=name)(x) for name in ACTIVATIONS]
    ),
    "dense-without-bias": layers.Dense(3, use_bias=False),
    "dense-with-a-layer": layers.Dense(3, activation=layers.LeakyReLU(negative_slope=0.1)),
    "two-layers": lambda x: layers.Dense(2)(layers.Dense(7, activation="tanh")(x)),
    "batch-normalization": layers.BatchNormalization(),
    "batch-normalization-bare": layers.BatchNormalization(center=False, scale=False),
    "layer-normalization": layers.LayerNormalization(epsilon=1e-2),
    "layer-normalization-bare": layers.LayerNormalization(center=False, scale=False),
    "rms-normalization": layers.RMSNormalization(),
    "unit-normalization": layers.UnitNormalization(),
    "normalization": layers.Normalization(mean=[1, 2, 3, 4.0], variance=[4, 1, 0.5, 2.0]),
    "normalization-inverted": layers.Normalization(mean=0.5, variance=4.0, axis=None, invert=True),
    "rescaling": layers.Rescaling(0.5, offset=-1),
    "dropout": lambda x: layers.GaussianNoise(1.0)(layers.Dropout(0.5)(x)),
    "leaky-relu": layers.LeakyReLU(),
    "elu": layers.ELU(alpha=0.5),
    "prelu": layers.PReLU(),
    "relu": layers.ReLU(max_value=1.0, negative_slope=0.2),
    "activation": layers.Activation("softsign"),
    "reshaped": lambda x: layers.Flatten()(layers.Permute((2, 1))(layers.Reshape((2, -1))(x))),
    "repeated": lambda x: layers.Flatten()(layers.RepeatVector(3)(x)),
    "merged": lambda x: layers.Concatenate()(
        [
            merge()([layers.Dense(3)(x), layers.Dense(3)(x)])
            for merge in (
                *(layers.Add, layers.Subtract, layers.Multiply, layers.Average),
                *(layers.Maximum, layers.Minimum),
            )
        ]
    ),
    "dot": lambda x: layers.Dot(1)([layers.Dense(3)(x), layers.Dense(3)(x)]),
    "nested": lambda x: keras.Sequential([layers.Dense(3, "relu"), layers.Dense(2)])(x),
    "shared": lambda x: (d := layers.Dense(4))(d(x)),
    "dueling": lambda x: (
        layers.Dense(1)(x) + (a := layers.Dense(3)(x)) - ops.mean(a, axis=1, keepdims=True)
    ),
    "functions": lambda x: ops.concatenate(
        [
            *(ops.exp(ops.clip(x, -1, 1)), ops.log(ops.abs(x) + 1), ops.sqrt(ops.square(x))),
            *(x / 2.0, 1 - x, -x, 2.0 / (ops.abs(x) + 1), ops.power(ops.abs(x), 1.5)),
            *(ops.softmax(x), ops.log_softmax(x), ops.where(x > 0, x, 0.5), ops.tanh(x)),
            *(ops.relu(x), ops.elu(x), ops.maximum(x, 0.2), ops.minimum(x, x * x)),
            *(ops.sum(x, axis=-1, keepdims=True), ops.max(x, axis=1, keepdims=True)),
            *(x[:, :2], x[..., 1:3], ops.expand_dims(x[:, 0], 1), ops.split(x, 2, axis=1)[1]),
            ops.reshape(ops.stack([x, -x], axis=1), (-1, 8)),
            ops.squeeze(ops.transpose(ops.expand_dims(x, 1), (0, 2, 1)), 2),
            ops.one_hot(ops.argmax(x, axis=-1), 4),
            ops.cast(x > 0.5, "float32"),
        ],
        axis=-1,
    ),
    "gelu": lambda x: ops.concatenate([ops.gelu(x), ops.gelu(x, approximate=False)], axis=1),
}


@pytest.mark.parametrize("build", ON_VECTORS.values(), ids=ON_VECTORS.keys())
def test_layers_on_vectors_give_keras_numbers(build: Build, tmp_path: Path) -> None:
    compare(build, (4,), tmp_path)


ON_IMAGES: dict[str, Build] = {
    "conv": layers.Conv2D(3, 3, strides=2, activation="relu"),
    "conv-same": layers.Conv2D(3, (2, 3), strides=2, padding="same", use_bias=False),
    "max-pooling": layers.MaxPooling2D(),
    "max-pooling-overlapping": layers.MaxPooling2D(3, strides=2),
    "max-pooling-same": layers.MaxPooling2D(3, strides=2, padding="same"),
    "average-pooling": layers.AveragePooling2D((2, 3), strides=1),
    "average-pooling-same": layers.AveragePooling2D(3, strides=2, padding="same"),
    "global-average": layers.GlobalAveragePooling2D(),
    "global-max": layers.GlobalMaxPooling2D(),
    "zero-padding": layers.ZeroPadding2D(((1, 0), (2, 1))),
    "normalised": layers.BatchNormalization(),
    "dense-on-pixels": layers.Dense(2),
    "spatial-dropout": layers.SpatialDropout2D(0.5),
    "several": lambda x: layers.Dense(3)(
        layers.Flatten()(layers.MaxPooling2D()(layers.Conv2D(4, 3, activation="elu")(x)))
    ),
}


@pytest.mark.parametrize("build", ON_IMAGES.values(), ids=ON_IMAGES.keys())
def test_layers_on_images_give_keras_numbers(build: Build, tmp_path: Path) -> None:
    compare(lambda x: layers.Flatten()(build(x)), (7, 6, 2), tmp_path)


ON_SEQUENCES: dict[str, Build] = {
    "conv": layers.Conv1D(3, 2, strides=2, padding="same"),
    "conv-causal": layers.Conv1D(3, 3, padding="causal", activation="tanh"),
    "max-pooling": layers.MaxPooling1D(2),
    "average-pooling": layers.AveragePooling1D(3, strides=1, padding="same"),
    "global-average": layers.GlobalAveragePooling1D(),
    "zero-padding": layers.ZeroPadding1D((1, 2)),
    "lstm": layers.LSTM(4),
    "lstm-without-bias": layers.LSTM(3, use_bias=False, recurrent_activation="hard_sigmoid"),
    "lstm-sequences": lambda x: layers.LSTM(3)(layers.LSTM(4, return_sequences=True)(x)),
    "gru": layers.GRU(4),
    "gru-reset-before": layers.GRU(4, reset_after=False),
    "gru-without-bias": layers.GRU(4, use_bias=False),
    "simple": layers.SimpleRNN(4),
}


@pytest.mark.parametrize("build", ON_SEQUENCES.values(), ids=ON_SEQUENCES.keys())
def test_layers_on_windows_give_keras_numbers(build: Build, tmp_path: Path) -> None:
    compare(lambda x: layers.Flatten()(build(x)), (5, 3), tmp_path)


@pytest.mark.parametrize(
    ("build", "shape", "dtype"),
    [
        (lambda x: layers.Flatten()(layers.Embedding(3, 4)(x)), (2,), "int32"),
        (lambda x: layers.CategoryEncoding(3, "one_hot")(x), (1,), "int32"),
        (lambda x: layers.Flatten()(layers.Rescaling(1 / 255)(x)), (2, 2, 1), "uint8"),
        (layers.Dense(3), (4,), "int32"),
    ],
    ids=["embedding", "one-hot", "bytes", "integers"],
)
def test_layers_on_integers_give_keras_numbers(
    build: Build, shape: tuple[int, ...], dtype: str, tmp_path: Path
) -> None:
    compare(build, shape, tmp_path, dtype=dtype)


def test_statistics_that_training_adapted_are_read(tmp_path: Path) -> None:
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(3, 2, size=(50, 4)))

    compare(layer, (4,), tmp_path, is_shaken=False)


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 4), (5,)], ids=["image", "sequence", "vector"])
def test_flattening_moves_channels_that_come_first_to_the_end(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    compare(layers.Flatten(data_format="channels_first"), shape, tmp_path)


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`:UserWarning")
@pytest.mark.parametrize("axis", [-1, [1, 2]], ids=["last-axis", "both-axes"])
def test_layer_normalization_with_rms_scaling_leaves_the_mean_in(
    axis: int | list[int], tmp_path: Path
) -> None:
    compare(
        lambda x: layers.Flatten()(layers.LayerNormalization(axis=axis, rms_scaling=True)(x + 2)),
        (3, 4),
        tmp_path,
    )


@pytest.mark.parametrize("size", [1e-3, 1e-8, 1e-14, 0.0])
def test_unit_normalization_of_small_numbers_gives_keras_numbers(
    size: float, tmp_path: Path
) -> None:
    compare(lambda x: layers.UnitNormalization()(x * size), (4,), tmp_path)


def own(x: Keras) -> Keras:
    """Be a function of somebody's own."""
    return x * 2


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (layers.Lambda(own, output_shape=(4,)), r"'lambda\w*' \(Lambda\): holds code"),
        (layers.Dense(3, activation=own), "the activation own is not computed"),
        (
            lambda x: layers.MultiHeadAttention(1, 2)(*[layers.Reshape((2, 2))(x)] * 2),
            r"\(MultiHeadAttention\): ",
        ),
        (layers.Discretization(bin_boundaries=[0.0]), r"\(Discretization\): is not computed"),
        (lambda x: layers.Dropout(0.5)(x, training=True), "is called with training"),
        (lambda x: ops.mean(x) + x, "goes over all observations of a batch"),
        (lambda x: x[0] + x, "takes some observations of a batch"),
        (lambda x: ops.erf(x), r"the operation .*Erf\): is not computed"),
        (layers.Dense(2, dtype="mixed_float16"), "computes in float32, mixed_float16"),
        (layers.Dense(2, dtype="bfloat16"), "computes in bfloat16, float32; expected float32"),
    ],
    ids=[
        *("lambda", "own-activation", "attention", "discretization", "dropout"),
        *("mean-of-batch", "slice-of-batch", "unknown-function", "mixed-precision", "bfloat16"),
    ],
)
def test_parts_that_are_not_computed_are_refused_by_name(
    build: Build, words: str, tmp_path: Path
) -> None:
    inputs = keras.Input((4,))
    folder = save(keras.Model(inputs, layers.Flatten()(build(inputs))), tmp_path)

    with pytest.raises(ModelError, match=words) as caught:
        load(folder, ACTION)

    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("build", "shape", "kind"),
    [
        (
            lambda x: layers.Multiply()(
                [layers.Reshape((3000, 1))(x), layers.Reshape((1, 3000))(x)]
            ),
            (3000,),
            "Multiply",
        ),
        (
            lambda x: layers.Reshape((100_000, 1))(x) > layers.Reshape((1, 100_000))(x),
            (100_000,),
            "Greater",
        ),
        (lambda x: layers.Dense(50)(layers.Reshape((100_000, 1))(x)), (100_000,), "Dense"),
        (layers.Conv2D(50, 1), (300, 300, 1), "Conv2D"),
        (layers.Embedding(2, 50), (100_000,), "Embedding"),
        (lambda x: layers.Concatenate()([x] * 50), (100_000,), "Concatenate"),
        (lambda x: ops.stack([x] * 50, axis=1), (100_000,), "Stack"),
    ],
    ids=["product", "comparison", "dense", "convolution", "embedding", "joined", "stacked"],
)
def test_result_that_is_too_large_is_refused_before_it_is_computed(
    build: Build, shape: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    inputs = keras.Input(shape)
    folder = save(keras.Model(inputs, build(inputs)), tmp_path)

    with pytest.raises(ModelError, match=rf"\({kind}\): its result has [\d,]+ numbers for one"):
        load(folder, ACTION)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = save(keras.Sequential([keras.Input((4,)), layers.Dense(3)]), tmp_path)
    change_config(folder, lambda config: config["config"]["layers"][1]["config"].update(units=4))

    with pytest.raises(ModelError, match=r"has weights of the shapes \[\(4, 3\), \(3,\)\]"):
        load(folder, ACTION)
