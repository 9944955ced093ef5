"""Versions side by side: of this code in one process, and of what it stands on."""

import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import dynamic_module_utils
from transformers.utils import versions

import inhibidistilbert
from inhibidistilbert import InhibiDistilBertConfig, InhibiDistilBertModel
from inhibidistilbert.modeling import configuration_inhibidistilbert
from tests.helpers.code_of_folders import code_of_folders

pytestmark = pytest.mark.portable


def small_model() -> InhibiDistilBertModel:
    # Wide weights, so that values pass and the attention has something to say.
    config = InhibiDistilBertConfig(vocab_size=50, dim=16, n_heads=2, n_layers=2, hidden_dim=32, initializer_range=0.5)
    return InhibiDistilBertModel(config).eval()


@pytest.fixture
def cache_of_code(tmp_path, monkeypatch) -> Iterator[None]:
    """transformers keeps the code of folders in a cache of this test's own. Later tests find the usual one again."""
    modules = str(tmp_path / "modules")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", modules)
    monkeypatch.syspath_prepend(modules)
    before = {name: sys.modules.pop(name) for name in code_of_folders()}
    yield
    for name in code_of_folders():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize("implementation", ["inhibitor", "eager"])
def test_package_and_remote_code_each_keep_their_operator(implementation, tmp_path, cache_of_code):
    """A folder whose operator doubles its output, beside the package: what one registers does not reach the other."""
    folder = tmp_path / "checkpoint"
    ours = small_model()
    ours.set_attn_implementation(implementation)
    ours.save_pretrained(folder)
    for file, once, doubled in (
        ("inhibitor_attention.py", "return output.to(outside), None if", "return 2 * output.to(outside), None if"),
        ("inhibitor_custom_op.py", "        return output, statistics\n", "        return 2 * output, statistics\n"),
    ):
        source = (folder / file).read_text()
        assert source.count(once) == 1
        (folder / file).write_text(source.replace(once, doubled))

    ids = torch.randint(5, 50, (2, 7))
    with torch.no_grad():
        before = ours(ids).last_hidden_state
        remote_class = dynamic_module_utils.get_class_from_dynamic_module(
            "modeling_inhibidistilbert.InhibiDistilBertModel", folder
        )
        assert remote_class is not InhibiDistilBertModel
        theirs = remote_class.from_pretrained(folder, attn_implementation=implementation)
        from_theirs = theirs(ids).last_hidden_state
        assert torch.equal(ours(ids).last_hidden_state, before)
        assert torch.equal(theirs(ids).last_hidden_state, from_theirs)
        assert not torch.allclose(from_theirs, before, atol=1e-3)

        for layer in ours.transformer.layer:
            layer.attention.beta *= 2
        torch.testing.assert_close(ours(ids).last_hidden_state, from_theirs)


@pytest.mark.parametrize("found", ["4.57.1", "5.16.2", "6.0.0"])
def test_another_transformers_is_told_in_one_line(found, monkeypatch):
    """The file is what a checkpoint's code begins with. (transformers 4.57.1 itself was tried by hand.)"""
    monkeypatch.setattr(versions.importlib.metadata, "version", lambda name: found)
    with pytest.raises(ImportError, match=rf"transformers>=5\.17,<6 is required .* found transformers=={found}"):
        runpy.run_path(configuration_inhibidistilbert.__file__)


def test_a_clone_without_symbolic_links_is_told_in_one_line(tmp_path):
    """Git writes a file with the target's name where links are switched off."""
    package = tmp_path / "inhibidistilbert"
    package.mkdir()
    shutil.copy(Path(inhibidistilbert.__file__), package / "__init__.py")
    (package / "kernels").write_text("../kernels")
    with pytest.raises(ImportError, match=r"git clone -c core\.symlinks=true"):
        runpy.run_path(str(package / "__init__.py"))
