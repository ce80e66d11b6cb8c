"""Held masks in training loops of other packages, with their checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from held import assert_held, assert_revival_is_noticed
from networks import perceptron
from test_examples import TRAINERS, run_example
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import supermask


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TRAINERS))
def test_examples_in_trainers_run(name, tmp_path, monkeypatch, capsys):
    run_example(name, tmp_path, monkeypatch, capsys)


def fit(folder, epochs: int, checkpoint=None, **flags) -> tuple[Any, Any]:
    # Here, and so in no process that has no test of it: it takes longer to import than PyTorch.
    import lightning.pytorch as lightning
    from classifier import Classifier

    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(24, 12, generator=generator), torch.arange(24) % 3)
    model, loader = Classifier(), DataLoader(data, batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=folder, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **flags,
    )  # fmt: skip
    trainer.fit(model, loader, loader, ckpt_path=checkpoint)
    assert trainer.global_step > 0
    return model, trainer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_lightning_and_its_checkpoints(tmp_path):
    whole, _ = fit(tmp_path, 3)
    _, stopped = fit(tmp_path, 1)
    stopped.save_checkpoint(tmp_path / "one.ckpt")
    resumed, _ = fit(tmp_path, 3, tmp_path / "one.ckpt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])
    assert set(torch.load(tmp_path / "one.ckpt")["state_dict"]) == {f"net.{name}" for name in perceptron().state_dict()}
    fit(tmp_path, 1, precision="bf16-mixed", accumulate_grad_batches=2, gradient_clip_val=0.1)
    assert_revival_is_noticed(resumed.net, resumed.masks)


def tiny_bert() -> nn.Module:
    import transformers

    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config)


def tiny_gpt2() -> nn.Module:
    """Its output layer is tied with the embedding."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
@pytest.mark.slow
def test_hugging_face_and_its_checkpoints(make, tmp_path):
    import transformers

    class EveryStep(transformers.TrainerCallback):
        """Checks the masks after every optimizer step."""

        def __init__(self, masks) -> None:
            self.masks, self.steps = masks, 0

        def on_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
            assert_held(model, self.masks)
            self.steps += 1

    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 20, (24, 6), generator=generator)
    labels = torch.arange(24) % 3 if make is tiny_bert else tokens
    data = [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]

    def train(folder, steps: int, checkpoint=None, recompute=False, **flags):
        model = make()
        if recompute:
            model.gradient_checkpointing_enable()
        masks = supermask.prune(model, 0.4, allocation="layerwise")
        supermask.hold(model, masks)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder), max_steps=steps, save_steps=2, per_device_train_batch_size=4, learning_rate=0.1,
            weight_decay=0.5, lr_scheduler_type="constant", use_cpu=True, report_to="none", disable_tqdm=True, seed=0,
            **flags,
        )  # fmt: skip
        callback = EveryStep(masks)
        trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback])
        trainer.train(resume_from_checkpoint=checkpoint)
        assert callback.steps > 0
        assert_held(model, masks)
        return model, masks

    whole, masks = train(tmp_path / "whole", 4)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    saved = type(whole).from_pretrained(checkpoint)
    assert not any(saved.get_parameter(name)[~mask].any() for name, mask in masks.items())
    resumed, _ = train(tmp_path / "resumed", 4, str(checkpoint))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    train(tmp_path / "accumulated", 2, bf16=True, gradient_accumulation_steps=2, recompute=True)
    assert_revival_is_noticed(resumed, masks)
