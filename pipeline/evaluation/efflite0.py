"""EfficientNet-Lite0 as an extractor: features behind the average pooling, logits of ImageNet."""

from torch import Tensor, nn


class EffLite0(nn.Module):
    """The package's network; fp32 [n, 3, h, w] -> features [n, 1280] and logits [n, 1000]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.extract_features(x).mean((2, 3))  # type: ignore[operator]
        return features, self.network._fc(features)  # type: ignore[operator]
