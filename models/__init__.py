"""The model families, and the calls by which everything else uses them.

model = models.build("gpt", size="gpt2", depth=2)     # -> Model(family, config)
variables = model.init(jax.random.key(0))             # {"params": ..., maybe "stats": ...}
value = model.predict(variables, tokens)              # a bare array is the family's main input
"""

from models.pretrained import load_pretrained, save_pretrained
from models.registry import FAMILIES, TRAITS, Model, build

__all__ = ["FAMILIES", "TRAITS", "Model", "build", "load_pretrained", "save_pretrained"]
