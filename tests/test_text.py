"""Text without a download, the language model for it, and networks of transformers by name."""

from __future__ import annotations

from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from torch.nn import functional

import supermask
from supermask.weights.architectures import find_architecture
from ticket_search import RequestError, search
from ticket_search.data.sources import read_arrays, read_samples

SMALL = {"n_embd": 8, "n_layer": 1, "n_head": 2}
FAST = {"train_size": 64, "epochs": 1, "batch_size": 32, "threads": 1, "progress": False, "metric": "perplexity"}


def test_every_piece_is_of_the_text_and_its_targets_are_the_characters_after_it():
    found = read_arrays("python-text")
    alphabet = sorted({character for text in topics.values() for character in text})
    assert found.classes == len(alphabet)
    whole = "".join(topics[topic] for topic in sorted(topics))
    for x, y in ((found.train_x, found.train_y), (found.test_x, found.test_y)):
        assert x.shape == y.shape and x.shape[1] == 64 and x.dtype == y.dtype == np.int64
        assert np.array_equal(x[:, 1:], y[:, :-1])
        for row in (0, len(x) // 2):
            piece = "".join(alphabet[number] for number in (*x[row], y[row, -1]))
            assert piece in whole
    in_test = "".join(topics[topic] for topic in sorted(topics)[9::10])
    assert "".join(alphabet[number] for number in found.test_x.flatten()) == in_test[: found.test_x.size]
    assert found.train_x.size + found.test_x.size > len(whole) - 130


def test_another_text_has_another_name(monkeypatch):
    name = read_samples("python-text", None, 0).name
    assert name.startswith("python-text@") and len(name) == len("python-text@") + 8
    assert read_samples(name, None, 0).name == name
    monkeypatch.setattr("ticket_search.data.text._topics", lambda: ("Another text. " * 1000,) * 20)
    with pytest.raises(RequestError, match=r"python-text is of version \w{8} on this machine, where it has another"):
        read_samples(name, None, 0)
    with pytest.raises(RequestError, match="the data set digits@1: digits has no versions"):
        read_samples("digits@1", None, 0)


def test_a_token_sees_itself_and_those_before_it():
    torch.manual_seed(0)
    model = find_architecture("gpt-tiny")((9,), 7).eval()
    x = torch.randint(0, 7, (2, 9))
    other = x.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 7
    assert torch.equal(model(x)[:, :5], model(other)[:, :5])
    assert not torch.allclose(model(x)[:, 5:], model(other)[:, 5:])
    torch.testing.assert_close(model(x[:, :4]), model(x)[:, :4])
    with pytest.raises(ValueError, match=r"takes sequences of tokens \[length\], the data has \[1, 8, 8\]"):
        find_architecture("gpt-tiny")((1, 8, 8), 7)
    with pytest.raises(ValueError, match="width 10: expected a multiple of the 4 heads"):
        find_architecture("gpt-tiny")((9,), 7, width=10)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("gpt-tiny", "width=8,depth=1,heads=2"),
        pytest.param("transformers:GPT2LMHeadModel", "n_embd=8,n_layer=1,n_head=2", marks=pytest.mark.slow),
    ],
)
def test_language_models_are_searched_and_measured_by_perplexity(model, arguments, tmp_path):
    run = search("imp", model, "python-text", model_args=arguments, density=0.5, fraction=0.5, runs=tmp_path, **FAST)
    summary, data = run.summary, read_samples("python-text", None, 0)
    assert summary["metric"] == {"name": "perplexity", "direction": "lower", "unit": ""}
    assert summary["data"] == data.name and run.ticket.masks.density == 0.5
    net, losses = run.ticket.model().eval(), []
    with torch.no_grad():
        for x, y in data.batches("test", 100):
            outputs = net(x)
            logits = getattr(outputs, "logits", outputs).flatten(0, 1).double()
            losses.append(functional.cross_entropy(logits, y.flatten(), reduction="none"))
    assert summary["test_metric"] == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-5)


def test_the_loss_of_the_next_token_is_not_shifted_twice(tmp_path):
    arguments = "n_embd=8,n_layer=1,n_head=2"
    with pytest.raises(RequestError, match="are the next tokens already; expected --loss cross-entropy"):
        search(
            "dense",
            "transformers:GPT2LMHeadModel",
            "python-text",
            model_args=arguments,
            loss="model",
            runs=tmp_path,
            **FAST,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "shape", "arguments", "checks"),
    [
        ("GPT2LMHeadModel", (16,), SMALL, {"vocab_size": 5, "max_position_embeddings": 16}),
        ("LlamaForCausalLM", (16,), {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_act": "gelu"}, {"vocab_size": 5, "hidden_act": "gelu"}),
        ("BertForSequenceClassification", (16,), {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}, {"num_labels": 5, "vocab_size": 50}),
        ("GPT2LMHeadModel", (16,), {**SMALL, "n_positions": 40}, {"n_positions": 40, "max_position_embeddings": 40}),
        ("GPT2LMHeadModel", (16,), {**SMALL, "vocab_size": 5, "max_position_embeddings": 20}, {"n_positions": 20}),
        ("ViTForImageClassification", (3, 32, 32), {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8}, {"num_labels": 5, "image_size": 32}),
    ],
)  # fmt: skip
def test_networks_of_transformers_by_class(name, shape, arguments, checks):
    model = find_architecture(f"transformers:{name}")(shape, 5, **arguments)
    assert {key: getattr(model.config, key) for key in checks} == checks
    x = torch.randn(2, *shape) if len(shape) == 3 else torch.randint(0, 5, (2, *shape))
    assert model.eval()(x).logits.shape[-1] == 5
    assert supermask.find_targets(model).size > 0


@pytest.mark.parametrize("names", [("input_ids",), ("input_ids", "attention_mask", "token_type_ids")], ids=len)
def test_a_network_of_transformers_for_samples_of_several_tensors(names):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    shapes = {name: [12] for name in names}
    model = find_architecture("transformers:BertForSequenceClassification")(shapes, 3, vocab_size=20, **sizes)
    assert (model.config.max_position_embeddings, model.config.num_labels) == (12, 3)
    given = {name: torch.ones(2, 12, dtype=torch.long) * (name == "attention_mask") for name in names}
    assert model.eval()(**given).logits.shape == (2, 3)


def test_a_network_of_one_tensor_says_that_there_are_several(tmp_path):
    data = {
        "a": np.zeros((20, 4), "f"),
        "b": np.zeros((20, 4), "f"),
        "c": np.zeros((20, 4), "f"),
        "y": np.arange(20) % 2,
    }
    for model in ("lenet-300-100", "torchvision:resnet18"):
        with pytest.raises(RequestError, match="a sample of arrays-.* is several tensors, of shapes {'a': .4., 'b'"):
            search("dense", model, data, runs=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("GPT2LMHeadModell", {}, "has no model 'GPT2LMHeadModell' with a configuration; did you mean 'GPT2LMHeadModel'"),
        ("AutoModelForCausalLM", {}, "has no model 'AutoModelForCausalLM'"),
        ("os.path", {}, "has no model 'os.path'"),
        ("pipeline", {}, "has no model 'pipeline'"),
        ("GPT2LMHeadModel", {"n_layers": 2}, "no configuration of n_layers; did you mean 'n_layer'"),
        ("GPT2LMHeadModel", {"name_or_path": "gpt2"}, "expected numbers, true or false"),
        ("GPT2LMHeadModel", {"_attn_implementation": "some/kernel"}, "expected numbers, true or false"),
        ("GPT2LMHeadModel", {"attn_implementation": "some/kernel"}, "expected numbers, true or false"),
        ("GPT2LMHeadModel", {"auto_map": {"AutoModel": "evil.Model"}}, "expected numbers, true or false"),
        ("GPT2LMHeadModel", {"activation_function": "../evil"}, "expected numbers, true or false"),
        ("GPT2LMHeadModel", {"n_embd": 7, "n_head": 2}, "cannot be built"),
    ],
)  # fmt: skip
def test_what_a_file_may_not_tell_transformers(name, arguments, problem):
    with pytest.raises(ValueError, match=problem):
        find_architecture(f"transformers:{name}")((16,), 5, **arguments)
