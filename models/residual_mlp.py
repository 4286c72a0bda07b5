"""The smallest residual network: blocks of a single layer, y = relu(W x + b + x)."""

from collections.abc import Sequence

from torch import Tensor, nn

from models.block import ResidualBlock
from models.construction import check_sizes, flow_per_block
from models.first_weights import FirstWeights, set_first_weights
from models.flow import RESIDUAL, Flow


class ResidualMLP(nn.Module):
    """A linear layer, residual blocks of one linear layer, and a linear classifier; made by `residual_mlp`.

    Args:
        stem: From the flattened input to the blocks' features.
        blocks: In order of depth.
        classifier: From the features to the classes.
    """

    def __init__(self, stem: nn.Sequential, blocks: Sequence[ResidualBlock], classifier: nn.Linear) -> None:
        super().__init__()
        self.stem, self.blocks, self.classifier = stem, nn.Sequential(*blocks), classifier

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) with in_features values each -> (N, num_classes)."""
        return self.classifier(self.blocks(self.stem(x.flatten(1))))


def residual_mlp(
    depth: int,
    *,
    in_features: int,
    width: int = 64,
    num_classes: int = 10,
    flow: Flow | Sequence[Flow] = RESIDUAL,
    first_weights: FirstWeights = "he",
) -> ResidualMLP:
    """The smallest residual network: a stem, depth - 2 blocks y = relu(W x + b + x), and the classifier.

    He et al. 2015 (arXiv 1512.03385, sec. 3.2) have such a branch of one layer in mind, and saw no advantage. Matrices
    begin with their normal initialisation, biases at 0; under one random seed all flows begin with the same weights.

    Args:
        depth: Weighted layers, at least 3.
        in_features: Values of an input, over all its axes but the first.
        width: Features of the blocks.
        num_classes: Outputs of the classifier.
        flow: One for all blocks (an arm), or one a block in order of depth.
        first_weights: Of the blocks' matrices, as in `cifar_resnet`; delta is the identity matrix.

    Returns:
        A network (N, ...) with in_features values each -> (N, num_classes).

    Raises:
        ValueError: A depth under 3, a size under 1, a wrong number of flows, or unknown first weights.
    """
    if depth < 3:
        raise ValueError(f"depth {depth} leaves no block between stem and classifier: give at least 3")
    check_sizes(in_features=in_features, width=width, num_classes=num_classes)
    flows = flow_per_block(flow, depth - 2)
    stem = nn.Sequential(nn.Linear(in_features, width), nn.ReLU())
    blocks = [ResidualBlock(nn.Linear(width, width), flow=block_flow) for block_flow in flows]
    model = ResidualMLP(stem, blocks, nn.Linear(width, num_classes))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    set_first_weights([block.branch for block in blocks], first_weights)
    return model
