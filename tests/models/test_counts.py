"""How many parameters each published size has, and how many are active in a token: as their makers say."""

import pytest

import models

# Of the checkpoints on the Hugging Face hub (a tied head counted once).
LLAMAS = {
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama_33b": 32_528_943_616,
    "llama_65b": 65_285_660_672,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3.1_8b": 8_030_261_248,
    "llama3.1_70b": 70_553_706_496,
    "llama3.1_405b": 405_853_388_800,
    "llama3.2_1b": 1_235_814_400,
    "llama3.2_3b": 3_212_749_824,
    "mistral_7b": 7_241_732_096,
    "qwen3_0.6b": 596_049_920,
    "qwen3_1.7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
}

# As torchvision's tables give them.
CONVNETS = {
    ("vgg", "vgg11"): 132_863_336,
    ("vgg", "vgg11_bn"): 132_868_840,
    ("vgg", "vgg13"): 133_047_848,
    ("vgg", "vgg13_bn"): 133_053_736,
    ("vgg", "vgg16"): 138_357_544,
    ("vgg", "vgg16_bn"): 138_365_992,
    ("vgg", "vgg19"): 143_667_240,
    ("vgg", "vgg19_bn"): 143_678_248,
    ("resnet", "resnet18"): 11_689_512,
    ("resnet", "resnet34"): 21_797_672,
    ("resnet", "resnet50"): 25_557_032,
    ("resnet", "resnet101"): 44_549_160,
    ("resnet", "resnet152"): 60_192_808,
    ("resnet", "wide_resnet50_2"): 68_883_240,
    ("resnet", "wide_resnet101_2"): 126_886_696,
}


def cifar_resnet(n: int) -> int:
    """2n convolutions of each width, norms, stem and head; He et al. 2015, table 6, has 0.27 to 1.7 million."""
    stages = sum(9 * w * (c + (2 * n - 1) * w) + 4 * n * w for c, w in ((16, 16), (16, 32), (32, 64)))
    return 9 * 3 * 16 + 2 * 16 + stages + 65 * 10


# Parameters of the published networks: the GPT-2 tables of the released checkpoints (openai/gpt-2, with tied heads),
# Nielsen 2015 ch. 1 (784-30-10), LeCun et al. 1998 p. 8 (60,000 trainable), a perceptron's 2x2 weights and 2 biases.
PUBLISHED = {
    ("gpt", "gpt2"): 124_439_808,
    ("gpt", "gpt2_medium"): 354_823_168,
    ("gpt", "gpt2_large"): 774_030_080,
    ("gpt", "gpt2_xl"): 1_557_611_200,
    **{("llama", name): count for name, count in LLAMAS.items()},
    ("bert", "bert_base"): 109_482_240,
    ("bert", "bert_large"): 335_141_888,
    ("bert", "bert_base_cased"): 108_310_272,
    ("bert", "bert_large_cased"): 333_579_264,
    ("bert", "minilm_l6"): 22_713_216,
    ("bert", "minilm_l12"): 33_360_000,
    ("mixtral", "mixtral_8x7b"): 46_702_792_704,
    ("mixtral", "mixtral_8x22b"): 140_630_071_296,
    ("mixtral", "qwen3_30b_a3b"): 30_532_122_624,
    ("mixtral", "qwen3_235b_a22b"): 235_093_634_560,
    ("gpt_oss", "gpt_oss_20b"): 20_914_757_184,
    ("gpt_oss", "gpt_oss_120b"): 116_829_156_672,
    ("grok", "grok_1"): 315_684_820_992,  # its maker says 314: without the table of tokens it has 314.88
    ("deepseek", "deepseek_v2_lite"): 15_706_484_224,
    ("deepseek", "deepseek_v2"): 235_741_434_880,
    ("deepseek", "deepseek_v3"): 671_026_404_352,  # and 14,848 biases of experts, which are no parameters
    ("llama4", "llama4_scout"): 107_769_861_120,  # what reads text, of 109 and 402 billion in all
    ("llama4", "llama4_maverick"): 400_711_848_960,
    ("gemma", "gemma2_2b"): 2_614_341_888,
    ("gemma", "gemma2_9b"): 9_241_705_984,
    ("gemma", "gemma2_27b"): 27_227_128_320,
    ("gemma", "gemma3_270m"): 268_098_176,
    ("gemma", "gemma3_1b"): 999_885_952,
    ("gemma", "gemma3_4b"): 3_880_263_168,  # this and the larger ones without what sees images
    ("gemma", "gemma3_12b"): 11_766_034_176,
    ("gemma", "gemma3_27b"): 27_009_346_304,
    ("gemma4", "gemma4_12b"): 11_907_350_272,  # these too, as transformers' modules of that size have them
    ("gemma4", "gemma4_31b"): 30_697_345_280,
    ("gemma4", "gemma4_26b_a4b"): 25_233_141_760,
    # The paper's table 3 says 65 and 213 million of a shared vocabulary of "about 37000 tokens". By its sizes, with
    # exactly as many and torch.nn.Transformer's biases, they are (counted by hand, and by that module):
    ("transformer", "base"): 63_082_496,
    ("transformer", "big"): 214_245_376,
    # Of DeiT (Touvron et al. 2021, table 1: 5 and 22 million) and of timm, and from B on of torchvision; H there for
    # images of 518 x 518, which has 1,113 positions more.
    ("vit", "ti_16"): 5_717_416,
    ("vit", "s_16"): 22_050_664,
    ("vit", "s_32"): 22_878_952,
    ("vit", "b_16"): 86_567_656,
    ("vit", "b_32"): 88_224_232,
    ("vit", "l_16"): 304_326_632,
    ("vit", "l_32"): 306_535_400,
    ("vit", "h_14"): 633_470_440 - 1113 * 1280,
    ("mlp", "nielsen"): 23_860,
    ("mlp", "perceptron"): 6,
    ("cnn", "lenet5"): 60_000,
    # Of Redmon's .weights files: their bytes less the header's, by 4, less the running moments.
    ("yolo", "yolov2"): (203_934_264 - 20) // 4 - 20_672,
    ("yolo", "yolov2_tiny_voc"): (63_471_556 - 16) // 4 - 6_112,
    ("yolo", "yolov3"): (248_007_048 - 20) // 4 - 52_608,
    ("yolo", "yolov3_tiny"): (35_434_956 - 20) // 4 - 6_368,
    ("yolo", "yolov3_spp"): (252_209_544 - 20) // 4 - 53_632,
    **CONVNETS,
    **{("resnet", f"resnet{6 * n + 2}"): cifar_resnet(n) for n in (3, 5, 7, 9, 18)},
}


@pytest.mark.parametrize(("family", "size"), [(f, s) for f, m in models.FAMILIES.items() for s in m.SIZES])
def test_parameter_count_is_the_published_one(family: str, size: str) -> None:
    assert models.build(family, size=size).count() == PUBLISHED[family, size]


# Of those with experts, the billions active in a token as their makers give them, and the places of the figure, after
# which some round and some cut off. Some do not count the table of tokens, of which a token has one row.
ACTIVE = {
    ("mixtral", "mixtral_8x7b"): (12.9, 1),
    ("mixtral", "mixtral_8x22b"): (39, 0),
    ("mixtral", "qwen3_30b_a3b"): (3.3, 1),
    ("mixtral", "qwen3_235b_a22b"): (22, 0),
    ("deepseek", "deepseek_v2_lite"): (2.4, 1),
    ("deepseek", "deepseek_v2"): (21, 0),
    ("deepseek", "deepseek_v3"): (37, 0),
    ("llama4", "llama4_scout"): (17, 0),
    ("llama4", "llama4_maverick"): (17, 0),
    ("gpt_oss", "gpt_oss_20b"): (3.61, 2),
    ("gpt_oss", "gpt_oss_120b"): (5.13, 2),
    ("gemma4", "gemma4_26b_a4b"): (3.8, 1),
    ("grok", "grok_1"): (84, 0),  # its maker says a quarter of the weights, and others 86, which no rule here gives
}


@pytest.mark.parametrize(
    ("family", "size"), [(f, s) for f, m in models.FAMILIES.items() for s in m.SIZES if hasattr(m.Config, "experts")]
)
def test_active_count_is_the_published_one(family: str, size: str) -> None:
    model = models.build(family, size=size)
    if model.count(active=True) == model.count():  # a family some of whose sizes have no experts
        assert (family, size) not in ACTIVE
        return
    billions, places = ACTIVE[family, size]
    table = model.config.vocab * model.config.width if family in ("gpt_oss", "deepseek") else 0
    ours = (model.count(active=True) - table) / 1e9
    assert round(ours, places) == billions or int(ours * 10**places) / 10**places == billions
