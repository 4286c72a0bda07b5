"""Trained CIFAR ResNets from public repositories, in the layer names that most of them share."""

import re
from collections.abc import Mapping

from torch import Tensor

NAMES = (
    (r"^module\.", ""),  # left by DataParallel
    (r"^conv1\.", "stem.0."),
    (r"^bn1\.", "stem.1."),
    (r"^(layer\d\.\d+)\.(conv\d|bn\d)\.", r"\1.branch.\2."),
    (r"^(layer\d\.\d+)\.(shortcut|downsample)\.", r"\1.shortcut."),
    (r"^(linear|fc)\.", "classifier."),
)


def rename_public_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a public CIFAR ResNet with basic blocks, under the names of `cifar_resnet`.

    Expects the names that go back to torchvision: conv1, bn1, layer1.0.conv1 ... layer3.8.bn2, linear or fc, with or
    without `module.` before them, such as akamaster/pytorch_resnet_cifar10's. Then

        stored = torch.load(FILE, weights_only=True)
        cifar_resnet(56).load_state_dict(rename_public_weights(stored["state_dict"]))

    `load_state_dict` names what does not fit. Raises ValueError where nothing looks like such a network.
    """
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    if "stem.0.weight" not in renamed:
        raise ValueError(
            f"got a state dict with names such as {', '.join(list(state)[:3]) or '(none)'}; wanted conv1, bn1, "
            "layer1.0.conv1, ..., linear: if the weights lie inside a checkpoint, pass its state_dict"
        )
    return renamed
