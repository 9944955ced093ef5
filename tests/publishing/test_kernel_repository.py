"""The kernel repository: what is in it, that the library `kernels` loads it, and that nothing else is overwritten."""

import ast
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernels._rust import Build, Digest, DigestAlgorithm, Metadata
from kernels.backends import CPU, CUDA, Backend, ROCm
from kernels.variants import _resolve_variant_for_system, get_variants_local
from packaging.version import Version

import inhibidistilbert
from inhibidistilbert import inhibitor_attention
from inhibidistilbert.kernels.layers import InhibitorAttention
from inhibidistilbert.publishing import kernel_repository
from inhibidistilbert.publishing.kernel_repository import build_kernel_repository
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.testing.reference import COMPILED_BACKENDS, Case, draw
from tests.helpers import kernel_client
from tests.helpers.kernel_client import values_and_gradients

OPERATOR = Path(inhibidistilbert.__file__).parent / "kernels"
SOURCE_NAMES = sorted([*(file.relative_to(OPERATOR).as_posix() for file in OPERATOR.rglob("*.py")), "__init__.py"])
SYSTEMS: dict[str, Backend] = {"cpu": CPU(), "cuda": CUDA(Version("12.8")), "rocm": ROCm(Version("7.0"))}
VARIANTS = [f"torch-{backend}" for backend in SYSTEMS]
BACKENDS = ["torch", *COMPILED_BACKENDS, "auto"]
CASE = Case(B=1, M=4, N=6, padding="holes", dropout=True, scalars=(2,))


def call() -> dict:
    inputs = draw(CASE)
    options = {name: option for name, option in inputs.options.items() if option is not None}
    return {"tensors": inputs.tensors, "grad_output": inputs.grad_output.float(), **options}


def layer_call() -> dict:
    """Without the options that the layer's forward does not take."""
    return {name: argument for name, argument in call().items() if name != "causal"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kernel") / "repository"
    build_kernel_repository(folder)
    return folder


def doubled_sources() -> dict[str, str]:
    """Those of another version, whose compiled operators give twice the output."""
    sources = kernel_repository.kernel_sources()
    custom_op, result = sources["custom_op.py"], "        return output, statistics\n"
    assert custom_op.count(result) == 1
    return sources | {"custom_op.py": custom_op.replace(result, "        return output.mul_(2), statistics\n")}


@pytest.fixture(scope="module")
def other_repository(tmp_path_factory) -> Path:
    folder, sources = tmp_path_factory.mktemp("kernel") / "other", doubled_sources()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_repository, "kernel_sources", lambda: sources)
        build_kernel_repository(folder)
    return folder


@pytest.fixture(scope="module")
def stranger(repository, other_repository, tmp_path_factory) -> dict:
    """The results of a new interpreter, isolated and working elsewhere."""
    torch.manual_seed(0)
    work, compiled = tmp_path_factory.mktemp("stranger"), {"backends": list(COMPILED_BACKENDS), **call()}
    calls = {
        "ours": ("operator", {"folder": str(repository), "backends": BACKENDS, **call()}),
        "the other": ("operator", {"folder": str(other_repository), **compiled}),
        "ours again": ("operator", {"folder": str(repository), **compiled}),
        "layer": ("layer", {"folder": str(repository), **layer_call()}),
    }
    torch.save(calls, work / "calls.pt")
    process = subprocess.run(
        [sys.executable, "-I", kernel_client.__file__, "calls.pt", "results.pt"],
        cwd=work,
        # The same split of work over threads, hence the same rounding, as in this process.
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return torch.load(work / "results.pt")


class TestFolder:
    def test_every_variant_holds_the_sources(self, repository):
        folders = [repository / "torch-ext" / "inhibitor", *(repository / "build" / variant for variant in VARIANTS)]
        assert sorted(file.name for file in (repository / "build").iterdir()) == sorted(VARIANTS)
        for folder in folders:
            assert sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.py")) == SOURCE_NAMES
            for name in set(SOURCE_NAMES) - {"__init__.py"}:
                assert (folder / name).read_bytes() == (OPERATOR / name).read_bytes(), name

    @pytest.mark.parametrize("name", SOURCE_NAMES)
    def test_imports(self, name, repository):
        """The standard library, torch, Triton and siblings; anything else only where its absence is caught."""
        file = repository / "torch-ext" / "inhibitor" / name
        tree = ast.parse(file.read_text())
        caught = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                sibling = file.parents[node.level - 1] / (node.module or "layers").replace(".", "/")
                assert sibling.with_suffix(".py").is_file()
            elif isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in caught:
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {module.partition(".")[0] for module in names} <= {"torch", "triton"} | sys.stdlib_module_names

    @pytest.mark.parametrize("backend", SYSTEMS)
    def test_metadata(self, backend, repository):
        variant = repository / "build" / f"torch-{backend}"
        metadata = Metadata.read_from_file(variant / "metadata.json")
        assert (metadata.name.python_name, metadata.version, metadata.license) == ("inhibitor", 0, "Apache-2.0")
        assert metadata.python_depends == []
        assert str(metadata.backend.backend_type).lower() == backend
        assert metadata.id.isidentifier()
        metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))

    @pytest.mark.parametrize("backend", SYSTEMS)
    def test_each_kind_of_machine_finds_its_variant(self, backend, repository):
        variants, _ = _resolve_variant_for_system(
            get_variants_local(repository / "build"), SYSTEMS[backend], "x86_64", "linux", Version("2.13"), True, None
        )
        assert [variant.variant_str for variant in variants] == [f"torch-{backend}"]

    def test_build_configuration(self, repository):
        assert [str(backend) for backend in Build.open(repository).general.backends] == list(SYSTEMS)

    def test_card(self, repository):
        _, metadata, text = (repository / "README.md").read_text().split("---\n", maxsplit=2)
        assert "library_name: kernels\n" in metadata
        assert "- kernel\n" in metadata
        for name in ("inhibitor_attention(", "layers.InhibitorAttention", *VARIANTS):
            assert name in text
        assert "{{" not in text

    def test_a_new_build_is_the_same(self, repository, tmp_path):
        build_kernel_repository(tmp_path / "again")
        for file in (repository / "build").rglob("*.json"):
            assert (tmp_path / "again" / file.relative_to(repository)).read_bytes() == file.read_bytes()

    def test_another_source_is_another_kernel(self, repository, other_repository):
        files = [file for root in (repository, other_repository) for file in root.rglob("metadata.json")]
        assert len({json.loads(file.read_text())["id"] for file in files}) == 2 * len(VARIANTS)


class TestWithoutThePackage:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_values_and_gradients(self, backend, stranger):
        want = values_and_gradients(inhibitor_attention, **call(), backend=backend)
        assert want["output"].any()
        for name, tensor in want.items():
            assert torch.equal(stranger["ours"][backend][name], tensor), name

    @pytest.mark.parametrize("backend", COMPILED_BACKENDS)
    def test_two_versions_in_one_process_keep_their_operators(self, backend, stranger):
        ours, other, again = (stranger[label][backend] for label in ("ours", "the other", "ours again"))
        assert torch.equal(other["output"], 2 * ours["output"])
        assert all(torch.equal(again[name], tensor) for name, tensor in ours.items())

    @pytest.mark.parametrize("mode", ["as it is", "compiled"])
    def test_kernelized_layer(self, mode, stranger):
        """Its module's own forward would raise an error."""
        want = values_and_gradients(inhibitor_attention, **call(), backend="auto")
        got = stranger["layer"][mode]
        assert got.keys() == want.keys()
        for name, tensor in want.items():
            torch.testing.assert_close(got[name], tensor)


def test_layer_is_the_operator():
    """In the package, where the kernel's layer is an ordinary module."""
    layer, arguments = InhibitorAttention(), layer_call()
    tensors, grad_output = arguments.pop("tensors"), arguments.pop("grad_output")
    for name in ("alpha", "beta", "gamma"):
        setattr(layer, name, tensors.pop(name))
    layer.centered, layer.signed = arguments.pop("centered"), arguments.pop("signed")
    got = values_and_gradients(layer, tensors, grad_output, **arguments)
    want = values_and_gradients(inhibitor_attention, **call())
    assert all(torch.equal(got[name], want[name]) for name in got)


def test_layer_has_the_forms_beyond_the_paper():
    layer, heads = InhibitorAttention(), {name: torch.randn(1, 2, 5, 4) for name in ("query", "key", "value")}
    given = {"alpha": torch.tensor([[-0.5], [0.1]]), "beta": torch.ones(1), "gamma": torch.ones(1), "delta": torch.ones(2)}
    given |= {"centered": True, "signed": True, "center": "least", "inhibition": "gate"}
    for name, value in given.items():
        setattr(layer, name, value)
    assert torch.equal(layer(**heads), inhibitor_attention(**heads, **given))


class TestOutputFolder:
    def test_former_build_is_replaced(self, tmp_path):
        build_kernel_repository(tmp_path / "kernel")
        stale = tmp_path / "kernel" / "build" / "torch-cpu" / "stale.py"
        stale.touch()
        build_kernel_repository(tmp_path / "kernel")
        assert not stale.exists()
        assert [entry.name for entry in tmp_path.iterdir()] == ["kernel"]

    def test_empty_folder_is_filled(self, tmp_path):
        build_kernel_repository(tmp_path)
        assert (tmp_path / "build" / "torch-cpu" / "metadata.json").exists()

    @pytest.mark.parametrize("added", [".git", "notes.txt"])
    def test_a_build_with_something_added_is_kept(self, added, tmp_path):
        build_kernel_repository(tmp_path / "kernel")
        (tmp_path / "kernel" / added).touch()
        with pytest.raises(UserError, match=f"output {tmp_path / 'kernel'} is not empty, nor a former build"):
            build_kernel_repository(tmp_path / "kernel")
        assert (tmp_path / "kernel" / added).exists()

    def test_another_kernel_is_kept(self, tmp_path):
        build_kernel_repository(tmp_path / "kernel")
        (tmp_path / "kernel" / "build.toml").write_text('[general]\nname = "relu"\n')
        with pytest.raises(UserError, match="nor a former build of this kernel"):
            build_kernel_repository(tmp_path / "kernel")

    def test_file_is_kept(self, tmp_path):
        (tmp_path / "kernel").write_text("mine")
        with pytest.raises(UserError, match=f"output {tmp_path / 'kernel'} is a file"):
            build_kernel_repository(tmp_path / "kernel")
        assert (tmp_path / "kernel").read_text() == "mine"

    def test_failed_build_leaves_the_former_one(self, tmp_path, monkeypatch):
        build_kernel_repository(tmp_path / "kernel")
        metadata = (tmp_path / "kernel" / "build" / "torch-rocm" / "metadata.json").read_bytes()

        def fail(config, backend, sources):
            raise OSError("no space left on device")

        monkeypatch.setattr(kernel_repository, "_metadata", fail)
        with pytest.raises(OSError, match="no space left"):
            build_kernel_repository(tmp_path / "kernel")
        assert [entry.name for entry in tmp_path.iterdir()] == ["kernel"]
        assert (tmp_path / "kernel" / "build" / "torch-rocm" / "metadata.json").read_bytes() == metadata

    def test_refusal_of_the_command_is_one_line(self, tmp_path, monkeypatch):
        (tmp_path / "notes.txt").touch()
        monkeypatch.setattr(sys, "argv", ["kernel_repository", str(tmp_path)])
        monkeypatch.delitem(sys.modules, kernel_repository.__name__)
        with pytest.raises(SystemExit) as refused:
            runpy.run_module(kernel_repository.__name__, run_name="__main__")
        # Text, which the interpreter prints as the last line and exits with 1.
        assert refused.value.code.startswith(f"error: output {tmp_path} is not empty")
        assert "\n" not in refused.value.code
