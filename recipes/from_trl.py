"""DPO on a small model as a script of TRL has it: of TRL's names, DPOConfig and DPOTrainer alone have become others.

    python recipes/from_trl.py [MODEL DATA]

With one objective, MODPO's loss is DPO's. A second objective is one more argument of the config: for rows with the
columns `chosen_concise` and `rejected_concise`, `weights={"helpful": 0.7, "concise": 0.3}`.
"""

import sys

from datasets import load_dataset
from transformers import AutoTokenizer

from modpo import MODPOConfig, MODPOTrainer

model, data = sys.argv[1:] or ("Qwen/Qwen3-0.6B", "trl-lib/ultrafeedback_binarized")

dataset = load_dataset(data)
tokenizer = AutoTokenizer.from_pretrained(model)

training_args = MODPOConfig(
    output_dir="from_trl",
    learning_rate=1e-4,
    per_device_train_batch_size=4,
    num_train_epochs=1,
    logging_steps=1,
    eval_strategy="steps",
    eval_steps=2,
    save_strategy="no",
    report_to="none",
    bf16=False,  # True where the device has it
)
trainer = MODPOTrainer(
    model=model,
    args=training_args,
    train_dataset=dataset["train"],
    eval_dataset=dataset["test"],
    processing_class=tokenizer,
)
trainer.train()

print(trainer.evaluate())
print(trainer.evaluate(dataset["test"].select(range(2)), metric_key_prefix="first"))  # rows as they came
trainer.save_model("from_trl/final")
