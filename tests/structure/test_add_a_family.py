"""docs/add_a_family.md: the code of the page makes families that obey the contract."""

import re
import sys
from types import ModuleType

import pytest

import models
from tests.models import test_contract as contract
from tests.support import ROOT, cases
from tests.support.cases import CASES, Case

PAGE = (ROOT / "docs" / "add_a_family.md").read_text()
FILES = dict(
    re.findall(r"^`((?:models/families|configs)/\w+\.py)`:\n\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
)
ENTRIES = re.findall(r'^```python\n("\w+": Case\(.*?\)),\n```', PAGE, re.MULTILINE | re.DOTALL)
NEW: dict[str, Case] = eval(f"{{{', '.join(ENTRIES)}}}", vars(cases))


def module_of(file: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module out of the page's code."""
    module = ModuleType(file.removesuffix(".py").replace("/", "."))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(FILES[file], file, "exec"), vars(module))
    return module


@pytest.fixture
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A family of the page, registered as the page says."""
    monkeypatch.setitem(models.FAMILIES, request.param, module_of(f"models/families/{request.param}.py", monkeypatch))
    monkeypatch.setitem(CASES, request.param, NEW[request.param])
    return request.param


def test_the_page_has_families() -> None:
    assert {f"{folder}/{name}.py" for folder in ("models/families", "configs") for name in NEW} == set(FILES) != set()


@pytest.mark.parametrize("name", NEW, indirect=True)
def test_a_family_of_the_page_has_the_shapes_of_its_table(name: str) -> None:
    contract.test_shapes_and_dtypes_follow_the_table(name)


@pytest.mark.parametrize("name", ["highway", pytest.param("palm", marks=pytest.mark.slow)], indirect=True)
def test_a_family_of_the_page_obeys_the_laws(name: str) -> None:
    """One test, so that the laws share their programs."""
    contract.test_gradients_are_finite_and_not_zero(name)
    contract.test_sharded_equals_unsharded(name, cases.hardest(name))
    if "cached" in models.FAMILIES[name].TRAITS:
        contract.test_no_token_sees_a_later_one(name)
        contract.test_cached_decoding_equals_the_full_forward(name)


def test_published_sizes_have_the_published_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Billions, as table 1 of PaLM's paper gives them."""
    monkeypatch.setitem(models.FAMILIES, "palm", module_of("models/families/palm.py", monkeypatch))
    counts = [models.build("palm", size).count() for size in models.FAMILIES["palm"].SIZES]
    assert [count / 1e9 for count in counts] == pytest.approx([8.63, 62.50, 540.35], abs=0.01)


@pytest.mark.parametrize("name", NEW, indirect=True)
def test_a_config_of_the_page_is_legal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each config, alone and with each ablation, sets fields that the family has."""
    module = module_of(f"configs/{name}.py", monkeypatch)
    for config in module.CONFIGS:
        for names in (config, *(f"{config}+{ablation}" for ablation in module.ABLATIONS)):
            fields = module.get_config(names).model.to_dict()
            models.build(fields.pop("family"), fields.pop("size"), **fields)
