"""What timm's config.json and tensors say of a Vision Transformer."""

import pytest

import models
from errors import UsageError
from models.families import vit
from models.pretrained.config_keys import Keys
from models.pretrained.layouts import vit_timm


def shapes_of(c: vit.Config) -> dict[str, tuple[int, ...]]:
    """The tensors of a network under timm's names."""
    found: dict[str, tuple[int, ...]] = {}
    for row in vit_timm.rows(c):
        found |= dict.fromkeys(row.names((c.depth,) if row.stacked_dims else ()), row.shape)
    return found


@pytest.mark.parametrize("grid", [(14, 16), (16, 14), (15, 15), (3, 5), (2, 3), (1, 1)])
@pytest.mark.parametrize("position", ["learned", "patches"])
def test_grids_that_count_alike_are_kept_apart(grid: tuple[int, int], position: str) -> None:
    """14 x 16 patches and a class token are as many as 15 x 15 patches; the image's size decides."""
    c = vit.Config(
        inputs=(4 * grid[0], 4 * grid[1], 3), patch=4, width=12, depth=1, heads=3, classes=5, position=position
    )
    shapes, config = shapes_of(c), {"architecture": "vit_tiny_patch16_224"}
    size = list(c.inputs[:2])
    for more in (
        {"model_args": {"img_size": size, "no_embed_class": position == "patches"}},
        {"model_args": {"img_size": size}, "pretrained_cfg": {"input_size": [3, 4, 4]}},
        {"pretrained_cfg": {"input_size": [3, *size]}},
        *([{}, {"model_args": {"img_size": size[0]}}] if grid[0] == grid[1] else []),
    ):
        found = vit_timm.fields(Keys(config | more, shapes))
        assert vit.Config(**found | {"hidden": None}) == c
    for args, says in (
        (
            {"img_size": [4 * grid[0] + 8, 4 * grid[1]]},
            "positions, which with patches of 4 x 4 do not fit an image",
        ),
        ({"img_size": size, "no_embed_class": position != "patches"}, f"do not fit an image of {size[0]} x {size[1]}"),
        ({"img_size": "large"}, "img_size 'large'"),
    ):
        with pytest.raises(UsageError, match=says):
            vit_timm.fields(Keys(config | {"model_args": args}, shapes))


def test_an_oblong_grid_that_nothing_gives_is_refused() -> None:
    """Unless its patches make a square image."""
    c = vit.Config(inputs=(8, 12, 3), patch=4, width=12, depth=1, heads=3)
    with pytest.raises(UsageError, match=r"pos_embed has 7 positions.*there is no img_size"):
        vit_timm.fields_from_shapes(shapes_of(c))
    c = vit.Config(inputs=(8, 8, 3), patch=(4, 2), width=12, depth=1, heads=3)
    assert vit_timm.fields_from_shapes(shapes_of(c))["inputs"] == c.inputs


def test_released_configs_are_read() -> None:
    """Each usual architecture has the heads and the fields of our sizes."""
    for size, name in (("ti_16", "tiny"), ("s_16", "small"), ("b_16", "base"), ("l_16", "large"), ("h_14", "huge")):
        model = models.build("vit", size=size)
        fields = vit_timm.fields_from_shapes(shapes_of(model.config))
        heads = vit_timm.HEADS[name]
        assert models.build("vit", **{**fields, "heads": heads, "hidden": None}).config == model.config
    assert all(kind.split("_")[1] in vit_timm.HEADS for kind in vit_timm.TYPES)
    with pytest.raises(UsageError, match="not of a Vision Transformer of timm"):
        vit_timm.fields_from_shapes({"patch_embed.proj.weight": (8, 3, 4, 4)})
