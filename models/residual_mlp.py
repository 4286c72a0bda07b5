"""The smallest residual network: blocks of a single layer, y = relu(W x + b + x)."""

from collections.abc import Sequence

from torch import Tensor, nn

from models.block import ResidualBlock
from models.flow import RESIDUAL, Flow, one_a_block
from models.sizes import check_sizes


class ResidualMLP(nn.Module):
    """A linear layer to `width` features, residual blocks of one linear layer, and a linear classifier."""

    def __init__(self, stem: nn.Sequential, blocks: Sequence[ResidualBlock], classifier: nn.Linear) -> None:
        super().__init__()
        self.stem, self.blocks, self.classifier = stem, nn.Sequential(*blocks), classifier

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) with in_features values each -> (N, num_classes)."""
        return self.classifier(self.blocks(self.stem(x.flatten(1))))


def residual_mlp(
    depth: int, *, in_features: int, width: int = 64, num_classes: int = 10, flow: Flow | Sequence[Flow] = RESIDUAL
) -> ResidualMLP:
    """A residual MLP of `depth` weighted layers: the stem, depth - 2 blocks y = relu(W x + b + x), the classifier (He
    et al. 2015, arXiv 1512.03385, sec. 3.2, have such a branch of one layer in mind, and saw no advantage).

    flow: one for all blocks, or one a block; all begin with the same weights under one random seed (He et al.'s normal
    initialisation of matrices, biases at 0).

    Raises ValueError for a depth under 3, a size under 1, or a wrong number of flows.
    """
    if depth < 3:
        raise ValueError(f"depth {depth} leaves no block between stem and classifier: give at least 3")
    check_sizes(in_features=in_features, width=width, num_classes=num_classes)
    flows = one_a_block(flow, depth - 2)
    stem = nn.Sequential(nn.Linear(in_features, width), nn.ReLU())
    blocks = [ResidualBlock(nn.Linear(width, width), flow=each) for each in flows]
    model = ResidualMLP(stem, blocks, nn.Linear(width, num_classes))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model
