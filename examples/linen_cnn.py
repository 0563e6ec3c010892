"""A convolutional network in Flax Linen, with batch norm and dropout, for small grey images."""

import flax.linen as nn


class SmallCNN(nn.Module):
    """Two convolutions, a hidden layer: image [B Y X C] -> scores [B classes]."""

    classes: int
    channels: tuple[int, ...] = (16, 32)
    hidden: int = 64

    @nn.compact
    def __call__(self, x, train: bool):
        """Scores of images."""
        for channels in self.channels:
            x = nn.Conv(channels, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape((x.shape[0], -1))
        kernel = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        x = nn.relu(nn.Dense(self.hidden, kernel_init=kernel)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)
