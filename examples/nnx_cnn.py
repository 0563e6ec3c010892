"""A convolutional network in Flax NNX, with batch norm and dropout, for small grey images."""

from flax import nnx


class SmallCNN(nnx.Module):
    """Two convolutions, a hidden layer: image [B Y X C] -> scores [B classes]."""

    def __init__(self, classes: int, size: int = 8, hidden: int = 64, *, rngs: nnx.Rngs):
        pairs = ((1, 16), (16, 32))
        self.convs = nnx.List([nnx.Conv(i, o, (3, 3), use_bias=False, rngs=rngs) for i, o in pairs])
        self.norms = nnx.List([nnx.BatchNorm(o, momentum=0.9, rngs=rngs) for _, o in pairs])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        kernel = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("embed", "mlp"))
        self.hidden = nnx.Linear((size // 4) ** 2 * 32, hidden, kernel_init=kernel, rngs=rngs)
        self.head = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, x):
        """Scores of images."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.max_pool(nnx.relu(norm(conv(x))), (2, 2), (2, 2))
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.head(self.dropout(x))
