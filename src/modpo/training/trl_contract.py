"""The private surface of transformers and TRL that the trainers touch: it may change with any of their releases.

Methods are overridden or called; attributes are read or written. tests/training/test_trl_contract.py holds this list
against the installed versions and against the code of this package. That an attribute still means what it did is what
tests/end_to_end/test_resume.py and the comparisons with TRL's own trainers find out.
"""

from __future__ import annotations

# Class -> method -> its first parameters behind `self`. What `Trainer` has, each of TRL's trainers has.
_ON_POLICY = {
    "_generate_and_score_completions": ("inputs",),
    "_tokenize_prompts": ("prompts",),
    "_generate_single_turn": ("prompt_ids",),
    "_get_per_token_logps_and_entropies": (
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
    ),
}
METHODS: dict[str, dict[str, tuple[str, ...]]] = {
    "Trainer": {
        "get_batch_samples": ("epoch_iterator", "num_batches", "device"),
        "training_step": ("model", "inputs", "num_items_in_batch"),
        "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
        "_load_rng_state": ("checkpoint",),
        "_save_checkpoint": ("model", "trial"),
        "_save_optimizer_and_scheduler": ("output_dir",),
        "_save_scaler": ("output_dir",),
        "_save_rng_state": ("output_dir",),
    },
    "DPOTrainer": {
        "_prepare_inputs": ("inputs",),
        "_prepare_dataset": ("dataset", "processing_class", "args", "dataset_name"),
        "_precompute_ref_logps": ("dataset", "name", "batch_size"),
        "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
        "prediction_step": ("model", "inputs", "prediction_loss_only", "ignore_keys"),
        "log": ("logs", "start_time"),
        "evaluation_loop": (
            "dataloader",
            "description",
            "prediction_loss_only",
            "ignore_keys",
            "metric_key_prefix",
        ),
        "evaluate": ("eval_dataset", "ignore_keys", "metric_key_prefix"),
        "predict": ("test_dataset", "ignore_keys", "metric_key_prefix"),
        "_get_train_sampler": ("train_dataset",),
        "_get_eval_sampler": ("eval_dataset",),
        "_set_signature_columns_if_needed": (),
        "floating_point_ops": ("inputs",),
        "_track_num_input_tokens": ("inputs",),
    },
    "RLOOTrainer": _ON_POLICY,
    "GRPOTrainer": _ON_POLICY,
}
_ON_POLICY_ATTRIBUTES = ("_metrics", "_step", "_buffered_inputs", "_tokenizer")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "Trainer": ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged"),
    "DPOTrainer": ("_metrics", "_total_train_tokens", "_signature_columns"),
    "RLOOTrainer": _ON_POLICY_ATTRIBUTES,
    "GRPOTrainer": _ON_POLICY_ATTRIBUTES,
}
