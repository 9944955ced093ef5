"""Inhibitor attention in transformers' own classes keeps transformers' contract for attention functions."""

import copy
import pickle
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    StaticCache,
    Trainer,
    TrainingArguments,
)
from transformers.dynamic_module_utils import get_imports

from inhibidistilbert import inhibit, inhibitor_attention
from inhibidistilbert.conversion.hosts import form_fields
from inhibidistilbert.conversion.options import StudentOptions
from inhibidistilbert.modeling.modeling_inhibited import InhibitorNorm, SoftmaxAttention
from inhibidistilbert.modeling.sources import source_files
from tests.helpers.hosts import COMMON, GENERATING, HOSTS, inputs_of, student


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


class Layer(nn.Module):
    """What an attention function sees of a host's layer."""

    def __init__(self, is_causal: bool = False, softmax: bool = False, **options):
        super().__init__()
        self.is_causal, self.num_key_value_groups = is_causal, 2
        self.inhibitor_norm = (
            SoftmaxAttention() if softmax else InhibitorNorm(form_fields(StudentOptions(**options)), heads=4)
        )

    def forward(self, query, key, value, mask=None, **kwargs):
        return self.inhibitor_norm.attend(self, query, key, value, mask, **kwargs)[0]


def tensors(queries: int = 7, keys: int = 7) -> list[torch.Tensor]:
    """Query, and key and value of half its heads."""
    torch.manual_seed(2)
    shapes = ((2, 4, queries, 8), (2, 2, keys, 8), (2, 2, keys, 8))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def explicit(layer: Layer, query, key, value, visible: torch.Tensor, scaling: float | None = None) -> torch.Tensor:
    """The definition under a full mask, divided by the keys that each query sees."""
    norm, factor = layer.inhibitor_norm, 1.0 if scaling is None else scaling * query.shape[3] ** 0.5
    key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
    visible = visible.expand(*query.shape[:3], key.shape[2])
    scalars = {"alpha": norm.alpha, "beta": norm.beta, "gamma": norm.gamma * factor}
    output = inhibitor_attention(query, key, value, attn_mask=visible, backend="naive", **scalars)
    return (output / visible.sum(-1, keepdim=True).clamp(min=1)).transpose(1, 2)


PAST = torch.ones(7, 7, dtype=torch.bool).tril()
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]).bool()
ANY = torch.rand(2, 4, 7, 7, generator=torch.Generator().manual_seed(3)) > 0.4
NEAR = (torch.arange(7)[:, None] - torch.arange(7)).abs() < 3
TEXT = torch.tensor([0, 0, 0, 1, 1, 2, 2])
NOTHING, HIDDEN = torch.tensor([0, torch.finfo(torch.float64).min], dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "visible"),
    [
        pytest.param({}, torch.ones(7, 7, dtype=torch.bool), id="all"),
        pytest.param({"is_causal": True}, PAST, id="causal"),
        pytest.param({"mask": PADDED}, PADDED[:, None, None], id="2-D"),
        pytest.param({"mask": PADDED.long(), "is_causal": True}, PADDED[:, None, None] & PAST, id="2-D, causal"),
        pytest.param({"mask": ANY, "is_causal": True}, ANY, id="4-D says all"),
        pytest.param({"mask": ANY[:1, :1]}, ANY[:1, :1], id="4-D of batch 1"),
        pytest.param({"mask": PADDED[:, None, None]}, PADDED[:, None, None], id="4-D of one query"),
        pytest.param({"mask": torch.where(ANY, NOTHING, HIDDEN)}, ANY, id="additive"),
        pytest.param({"sliding_window": 3}, NEAR, id="window"),
        pytest.param({"sliding_window": 3, "is_causal": True}, NEAR & PAST, id="window, causal"),
        pytest.param(
            {"sliding_window": 3, "is_causal": True, "mask": PADDED},
            PADDED[:, None, None] & NEAR & PAST,
            id="window, padded",
        ),
        pytest.param({"sliding_window": 3, "mask": ANY}, ANY, id="4-D holds the window"),
        pytest.param({"scaling": 0.1, "is_causal": True}, PAST, id="scaling"),
    ],
)
@pytest.mark.parametrize("softmax", [False, True], ids=["inhibitor", "softmax"])
def test_every_form_of_mask(arguments, visible, softmax):
    layer = Layer(softmax=softmax).double()
    found = layer(*tensors(), **arguments)
    scaling = arguments.get("scaling")
    if softmax:
        query, key, value = tensors()
        key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
        mask = visible.expand(2, 4, 7, 7)
        expected = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scaling).transpose(1, 2)
    else:
        expected = explicit(layer, *tensors(), visible, scaling)
    assert_close(found, expected)


@pytest.mark.parametrize("softmax", [False, True], ids=["inhibitor", "softmax"])
def test_packed_texts_in_one_row(softmax):
    layer = Layer(is_causal=True, softmax=softmax).double()
    row = [x[:1] for x in tensors()]
    found = layer(*row, cu_seq_lens_q=torch.tensor([0, 3, 5, 7]))
    alone = [layer(*(x[:, :, text == TEXT] for x in row)) for text in range(3)]
    assert_close(found, torch.cat(alone, dim=1))
    with pytest.raises(ValueError, match="got 2 rows of 7 queries"):
        layer(*tensors(), cu_seq_lens_q=torch.tensor([0, 7]))


def test_the_last_query_stands_at_the_last_key_that_the_mask_names():
    """As for flash attention: a static cache has more rows than its mask, and they may hold anything."""
    layer = Layer(is_causal=True).double()
    query, key, value = tensors(queries=3, keys=7)
    visible = torch.ones(3, 5, dtype=torch.bool).tril(2)
    expected = explicit(layer, query, key[:, :, :5], value[:, :, :5], visible)
    key[:, :, 5:] = value[:, :, 5:] = torch.nan
    assert_close(layer(query, key, value, torch.ones(2, 5)), expected)


def test_dropout_takes_keys_and_their_values_stay_in_the_count():
    layer = Layer().double()
    torch.manual_seed(0)
    kept = torch.rand(2, 7) >= 0.5
    query, key, value = tensors()
    torch.manual_seed(0)
    found = layer(query, key, value, dropout=0.5)
    repeated = (x.repeat_interleave(2, dim=1) for x in (key, value))
    norm = layer.inhibitor_norm
    scalars = {"alpha": norm.alpha, "beta": norm.beta, "gamma": norm.gamma}
    expected = inhibitor_attention(query, *repeated, key_dropout_mask=kept, backend="naive", **scalars) / 7
    assert_close(found, expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"position_bias": torch.zeros(1)}, "position_bias is not honoured"),
        ({"s_aux": torch.zeros(4)}, "s_aux is not honoured by inhibitor attention: the model asks for attention sinks"),
        ({"softcap": 30.0}, "softcap is not honoured"),
        ({"mask": torch.where(ANY, NOTHING + 0.5, HIDDEN)}, "attention_mask must hold 0 .* got 0.5"),
        ({"mask": ANY.long()}, "must be bool or floating, got torch.int64"),
        ({"mask": ANY[..., :5]}, "attn_mask must be"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_is_not_honoured_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Layer().double()(*tensors(), **arguments)


def test_unequal_head_sizes_are_refused():
    query, key, value = tensors()
    with pytest.raises(ValueError, match=r"one head size for inhibitor attention, got \[8, 8, 4\]"):
        Layer().double()(query, key, value[..., :4])


def test_a_model_that_was_never_inhibited_says_what_to_do():
    model = HOSTS["gpt2"]()
    model.set_attn_implementation("inhibitor")
    with pytest.raises(ValueError, match=r"GPT2Attention has no alpha.*inhibidistilbert\.inhibit\(model\).*convert"):
        model(**inputs_of("gpt2"))


class TestStudent:
    @pytest.mark.parametrize("name", HOSTS)
    def test_is_its_host_with_scalars(self, name):
        torch.manual_seed(0)
        host = HOSTS[name]()
        before, kind = copy.deepcopy(host.state_dict()), type(host)
        model = inhibit(host)
        assert model is host
        assert isinstance(model, kind)
        assert type(model).__name__ == kind.__name__
        added = {key: x for key, x in model.state_dict().items() if key not in before}
        assert {key.rpartition(".")[2] for key in added} == {"alpha", "beta", "gamma"}
        assert all(x.shape == (4,) and x.dtype == torch.float32 for x in added.values())
        assert len(added) == 6
        assert all(torch.equal(model.state_dict()[key], x) for key, x in before.items())
        half = model.bfloat16()
        assert {half.state_dict()[key].dtype for key in added} == {torch.float32}

    @pytest.mark.parametrize("name", HOSTS)
    def test_gradient_reaches_every_scalar(self, name):
        model = student(name)
        model(**inputs_of(name)).logits.square().sum().backward()
        scalars = {key: x.grad for key, x in model.named_parameters() if ".inhibitor_norm." in key}
        assert len(scalars) == 6
        assert all(grad is not None and (grad != 0).any() for grad in scalars.values())

    @pytest.mark.parametrize("name", GENERATING)
    def test_is_causal(self, name):
        model, ids = student(name), inputs_of(name)["input_ids"]
        assert_close(model(ids[:, :5]).logits, model(ids).logits[:, :5])

    def test_bert_does_not_see_padding(self):
        model, ids = student("bert"), inputs_of("bert")["input_ids"]
        mask = torch.ones_like(ids)
        mask[0, 6:] = 0
        found = model(ids, attention_mask=mask).logits
        assert_close(found[:1, :6], model(ids[:1, :6]).logits)
        assert_close(found[1:], model(ids[1:]).logits)

    @pytest.mark.parametrize("name", GENERATING)
    def test_packed_texts_are_each_alone(self, name):
        model = student(name)
        ids = inputs_of(name)["input_ids"]
        texts = ids[:1, :4], ids[:1, 4:], ids[1:]
        position_ids = torch.cat([torch.arange(text.shape[1]) for text in texts])[None]
        together = model(torch.cat(texts, dim=1), position_ids=position_ids, use_cache=False).logits
        assert_close(together, torch.cat([model(text).logits for text in texts], dim=1))

    def test_a_sliding_window_is_an_explicit_mask(self):
        model, ids = student("mistral"), inputs_of("mistral")["input_ids"]
        place = torch.arange(9)
        visible = (place <= place[:, None]) & (place > place[:, None] - 5)
        assert_close(model(ids).logits, model(ids, attention_mask=visible.expand(2, 1, 9, 9)).logits)

    @pytest.mark.parametrize("name", GENERATING)
    def test_generation_with_every_cache(self, name):
        """No cache, dynamic, static, and a batch padded on the left: the same tokens and logits; so when resumed."""
        model, ids = student(name), inputs_of(name)["input_ids"]
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
        options |= {"output_logits": True}
        expected = model.generate(ids, use_cache=False, **options)
        padded = nn.functional.pad(ids, (3, 0))
        mask = nn.functional.pad(torch.ones_like(ids), (3, 0))
        for found in (
            model.generate(ids, **options),
            model.generate(ids, cache_implementation="static", **options),
            model.generate(padded, attention_mask=mask, **options),
            model.generate(padded, attention_mask=mask, cache_implementation="static", **options),
        ):
            assert torch.equal(found.sequences[:, -6:], expected.sequences[:, -6:])
            assert_close(torch.stack(found.logits), torch.stack(expected.logits))

        whole = model(expected.sequences).logits
        for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=20)):
            parts = [model(part, past_key_values=cache).logits for part in expected.sequences.split(4, dim=1)]
            assert_close(torch.cat(parts, dim=1), whole)

    def test_keeps_softmax_where_told(self):
        plain, ids = HOSTS["llama"]().double().eval(), inputs_of("llama")["input_ids"]
        hybrid = inhibit(copy.deepcopy(plain), layers=[1])
        kinds = [type(layer.self_attn.inhibitor_norm) for layer in hybrid.model.layers]
        assert kinds == [SoftmaxAttention, InhibitorNorm]
        states = [model(ids, output_hidden_states=True).hidden_states for model in (plain, hybrid)]
        assert_close(states[1][1], states[0][1])
        assert not torch.allclose(states[1][2], states[0][2])

    def test_cross_attention_keeps_softmax(self):
        config = GPT2Config(**COMMON, n_embd=16, n_head=4, n_positions=64, add_cross_attention=True)
        model = inhibit(GPT2LMHeadModel(config)).eval()
        assert isinstance(model.transformer.h[0].attn.inhibitor_norm, InhibitorNorm)
        assert isinstance(model.transformer.h[0].crossattention.inhibitor_norm, SoftmaxAttention)
        ids, states = inputs_of("gpt2")["input_ids"], torch.randn(2, 5, 16)
        mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
        found = model(ids, encoder_hidden_states=states, encoder_attention_mask=mask).logits
        states[0, 3:] = 7.0
        assert torch.equal(model(ids, encoder_hidden_states=states, encoder_attention_mask=mask).logits, found)

    def test_gives_its_scores(self):
        model, inputs = student("llama"), inputs_of("llama")
        outputs = model(**inputs, output_attentions=True)
        assert [scores.shape for scores in outputs.attentions] == [(2, 4, 9, 9)] * 2
        assert_close(outputs.logits, model(**inputs).logits)

    @pytest.mark.parametrize("name", ["eager", "sdpa"])
    def test_never_computes_softmax(self, name):
        with pytest.raises(ValueError, match="would compute softmax attention"):
            student("gpt2").set_attn_implementation(name)

    def test_copies_and_pickles(self):
        model, inputs = student("gpt2"), inputs_of("gpt2")
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(other) is type(model)
            assert torch.equal(other(**inputs).logits, model(**inputs).logits)


WORDS = ["<pad>", "<unk>", "a", "film", "was", "quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A student of GPT-2 with its tokenizer, in several files of weights."""
    folder = tmp_path_factory.mktemp("hosts") / "gpt2-student"
    student("gpt2").save_pretrained(folder, max_shard_size="4KB")
    words = tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(words)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return str(folder)


class TestFolder:
    def test_is_in_shards_and_holds_what_its_model_imports(self, folder):
        assert Path(folder, "model.safetensors.index.json").is_file()
        assert {file.name for file in Path(folder).glob("*.py")} == set(source_files("modeling_inhibited.py"))
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        assert isinstance(model, GPT2LMHeadModel)
        assert_close(model(**inputs_of("gpt2")).logits, student("gpt2")(**inputs_of("gpt2")).logits)

    @pytest.mark.parametrize("source", source_files("modeling_inhibited.py").values(), ids=lambda file: file.name)
    def test_only_torch_and_transformers_are_required(self, source):
        assert set(get_imports(source)) <= {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names

    def test_of_another_head_and_from_the_configuration_alone(self, folder):
        expected = student("gpt2").transformer(**inputs_of("gpt2")).last_hidden_state
        base = AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert_close(base(**inputs_of("gpt2")).last_hidden_state, expected)
        new = AutoModelForCausalLM.from_config(base.config, trust_remote_code=True)
        assert new.transformer.h[1].attn.inhibitor_norm.beta.tolist() == [1.5] * 4
        with pytest.raises(ValueError, match="would compute softmax"):
            AutoModel.from_pretrained(folder, trust_remote_code=True, attn_implementation="sdpa")

    def test_scalars_that_the_weights_lack_start_anew(self, folder):
        kind, config = type(student("gpt2")), student("gpt2").config
        model = kind.from_pretrained(None, config=config, state_dict=HOSTS["gpt2"]().state_dict())
        assert model.transformer.h[0].attn.inhibitor_norm.alpha.tolist() == [0.5] * 4

    @pytest.mark.parametrize("fields", [None, {"inhibition": "gate"}], ids=["none", "some"])
    def test_a_configuration_without_the_form_says_what_to_do(self, fields):
        config = GPT2Config(**COMMON, n_embd=16, n_head=4, bos_token_id=None)
        if fields is not None:
            config.inhibitor = fields
        with pytest.raises(ValueError, match=r"config\.inhibitor must have the fields layers, inhibition.* convert"):
            type(student("gpt2"))(config)

    def test_generates_in_a_pipeline(self, folder):
        pipe = transformers.pipeline("text-generation", model=folder, trust_remote_code=True)
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        text = "a film was"
        ids = pipe.tokenizer(text, return_tensors="pt")["input_ids"]
        expected = pipe.tokenizer.decode(student("gpt2").generate(ids, **options)[0], skip_special_tokens=True)
        assert pipe(text, **options)[0]["generated_text"] == expected

    def test_trains_and_never_decays_its_scalars(self, folder, tmp_path):
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
        before = {name: x.detach().clone() for name, x in model.named_parameters()}
        arguments = TrainingArguments(
            tmp_path, max_steps=1, weight_decay=0.1, report_to=[], use_cpu=True, save_strategy="no"
        )
        rows = [{"input_ids": row, "labels": row} for row in inputs_of("gpt2")["input_ids"]]
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        scalars = {name for name in before if ".inhibitor_norm." in name}
        assert len(scalars) == 6
        assert not scalars & set(trainer.get_decay_parameter_names(model))
        assert not any(torch.equal(model.get_parameter(name), before[name]) for name in scalars)
