"""Where weights lie: device maps, offloading, the meta device, and sharding over processes by FSDP."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from accelerate import disk_offload, infer_auto_device_map, init_empty_weights, load_checkpoint_and_dispatch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from inhibidistilbert.testing.reference import FORWARD_TOLERANCE, relative_rms
from tests.helpers.tiny import TASKS, first_output, model_class, tiny_config, tiny_distilbert, tiny_model
from tests.helpers.tiny_batches import NO_DROPOUT, assert_same_output, batch

TASK = "ForSequenceClassification"
# Keeps "auto" on the CPU, whatever the machine has.
CPU = {"max_memory": {"cpu": 10**9}}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[torch.nn.Module, Path]:
    """A model and the folder it is saved in."""
    model = tiny_model(TASK)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    return model, folder


def on_meta(model: torch.nn.Module) -> list[str]:
    """The names of parameters and buffers without memory."""
    return [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]


@torch.no_grad()
@pytest.mark.parametrize("device_map", [{"": "cpu"}, "cpu", "auto", "sequential"], ids=["dict", "cpu", "auto", "sequential"])
def test_loading_by_a_device_map_leaves_nothing_on_meta(saved, device_map):
    model, folder = saved
    loaded = model_class(TASK).from_pretrained(folder, device_map=device_map, **CPU)
    assert not on_meta(loaded)
    assert_same_output(loaded(**batch(TASK, 3, 9)), model(**batch(TASK, 3, 9)))


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_a_plain_distilbert_folder_leaves_nothing_on_meta(tmp_path, task):
    """The scalars are in no such checkpoint: they must not stay where loading builds the model."""
    tiny_distilbert("Model").save_pretrained(tmp_path)
    loaded = model_class(task).from_pretrained(tmp_path, device_map="auto", **CPU)
    assert not on_meta(loaded)
    assert first_output(loaded(**batch(task, 3, 9))).isfinite().all()


@torch.no_grad()
def test_a_layer_on_disk(saved, tmp_path):
    model, folder = saved
    places = {name: "cpu" for name, _ in model.named_children() if name != "distilbert"}
    places |= {"distilbert.embeddings": "cpu", "distilbert.transformer.layer.0": "cpu"}
    places |= {"distilbert.transformer.layer.1": "disk"}
    loaded = model_class(TASK).from_pretrained(folder, device_map=places, offload_folder=tmp_path / "offload")
    assert {name.partition(".layer.")[2][:1] for name in on_meta(loaded)} == {"1"}
    assert_same_output(loaded(**batch(TASK, 3, 9)), model(**batch(TASK, 3, 9)))


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_a_whole_model_on_disk(tmp_path, task):
    model = tiny_model(task)
    expected = model(**batch(task, 3, 9))
    disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert_same_output(model(**batch(task, 3, 9)), expected)


@pytest.mark.parametrize("task", TASKS)
def test_no_device_map_parts_what_is_added_together(task):
    """Word and position embeddings are summed, and a block has its residual: each is a whole on one device."""
    model = tiny_model(task, n_layers=3)
    for budget in range(1000, 60_000, 1000):
        places = infer_auto_device_map(
            model, max_memory={"cpu": budget, "disk": 10**9}, no_split_module_classes=model._no_split_modules
        )
        parted = [name for name in places if "embeddings." in name or name.partition(".layer.")[2].count(".")]
        assert not parted, f"with {budget} bytes"


@pytest.mark.parametrize("task", TASKS)
def test_on_the_meta_device_shapes_are_known_without_memory(task):
    with torch.device("meta"):
        model = model_class(task)(tiny_config())
    assert all(parameter.is_meta for parameter in model.parameters())
    inputs = batch(task, 3, 9, labelled=task != "Model")
    outputs = model(**{name: tensor.to("meta") for name, tensor in inputs.items()})
    assert first_output(outputs).is_meta
    assert first_output(outputs).shape == first_output(tiny_model(task)(**inputs)).shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_cast_on_the_meta_device_the_scalars_stay_float32(dtype):
    with torch.device("meta"):
        model = model_class(TASK)(tiny_config()).to(dtype)
    scalars = ("alpha", "beta", "gamma")
    for name, parameter in model.to_empty(device="cpu").named_parameters():
        assert parameter.dtype == (torch.float32 if name.rpartition(".")[2] in scalars else dtype), name


@torch.no_grad()
def test_accelerate_fills_an_empty_model(saved):
    model, folder = saved
    with init_empty_weights():
        empty = model_class(TASK)(tiny_config())
    assert all(parameter.is_meta for parameter in empty.parameters())
    filled = load_checkpoint_and_dispatch(
        empty, folder, device_map="auto", no_split_module_classes=empty._no_split_modules, **CPU
    ).eval()
    assert not on_meta(filled)
    assert_same_output(filled(**batch(TASK, 3, 9)), model(**batch(TASK, 3, 9)))


def training_step(model: torch.nn.Module, inputs: dict) -> torch.Tensor:
    """The loss before one step of plain gradient descent, which changes every parameter in proportion to its gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    return loss.detach()


def sharded_by_fsdp2(model: torch.nn.Module) -> torch.nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.distilbert.transformer.layer:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def sharded_by_fsdp1(model: torch.nn.Module) -> torch.nn.Module:
    policy = ModuleWrapPolicy({type(model.distilbert.transformer.layer[0])})
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu"))


def full_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Whole copies of the parameters of a model that is sharded one way or the other."""
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model):
            return {name.replace("_fsdp_wrapped_module.", ""): p.detach().clone() for name, p in model.named_parameters()}
    return {name: parameter.full_tensor() for name, parameter in model.named_parameters()}


def compare_sharded_with_whole(rank: int, processes: int, folder: str) -> None:
    """One process's part: a step on its share of a batch; the first process stores what came out."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    inputs = batch(TASK, 2 * processes, 9, labelled=True)
    share = {name: tensor.chunk(processes)[rank] for name, tensor in inputs.items()}
    whole = tiny_model(TASK, **NO_DROPOUT)
    results = {"whole": (training_step(whole, inputs), dict(whole.named_parameters()))}
    for shard in (sharded_by_fsdp1, sharded_by_fsdp2):
        model = shard(tiny_model(TASK, **NO_DROPOUT))
        loss = training_step(model, share)
        dist.all_reduce(loss)
        results[shard.__name__] = (loss / processes, full_parameters(model))
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_training_step_sharded_over_two_processes_equals_the_whole_models(tmp_path):
    multiprocessing.spawn(compare_sharded_with_whole, (2, str(tmp_path)), nprocs=2)
    results = torch.load(tmp_path / "results.pt")
    before = dict(tiny_model(TASK, **NO_DROPOUT).named_parameters())
    loss, parameters = results.pop("whole")
    assert not any(torch.equal(parameters[name], before[name]) for name in before)

    assert list(results) == ["sharded_by_fsdp1", "sharded_by_fsdp2"]
    for sharded_loss, sharded in results.values():
        assert relative_rms(sharded_loss, loss) < FORWARD_TOLERANCE
        assert sharded.keys() == parameters.keys()
        for name, parameter in parameters.items():
            assert relative_rms(sharded[name], parameter) < FORWARD_TOLERANCE, name
