"""A masked BERT in the Trainer of transformers: saved, read back and still sparse. Which word is it about?

Run: python examples/hugging_face_trainer.py          (pip install transformers accelerate)
"""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import supermask

torch.manual_seed(0)
size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=3, **size))
masks = supermask.prune(model, density=0.3, allocation="layerwise")
supermask.hold(model, masks)

tokens = torch.randint(3, 50, (600, 8))
labels = torch.randint(0, 3, (600,))
tokens[:, 0] = labels
data = [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, num_train_epochs=3, per_device_train_batch_size=30, learning_rate=0.01, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    supermask.check(model)
    trainer.save_model(folder)
    saved = BertForSequenceClassification.from_pretrained(folder)

accuracy = (saved(tokens).logits.argmax(1) == labels).float().mean()
print(f"accuracy on the training data {accuracy:.3f} with {masks}")
assert not any(saved.get_parameter(name)[~mask].any() for name, mask in masks.items())
