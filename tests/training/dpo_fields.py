"""Every field of TRL's DPOConfig and every argument of its DPOTrainer, and what becomes of it here.

A field that TRL or transformers adds is in none of these lists, and fails the test until somebody has looked at it.
"""

from __future__ import annotations

# Of DPOConfig itself, and where it is tested that they have their effect.
HONOURED = {
    "model_init_kwargs": "test_loading",
    "trust_remote_code": "test_loading",
    "router_aux_loss_coef": "test_model_checks",
    "disable_dropout": "test_trainer: dropout of any kind is off",
    "max_length": "test_trl_surface",
    "loss_type": "test_trl_contract: sigmoid and hinge; the others are refused",
    "beta": "test_trl_contract",
    "pad_token": "test_loading",
    "pad_to_multiple_of": "test_trl_surface",
    "precompute_ref_log_probs": "test_row_inputs",
    "activation_offloading": "test_trl_surface: on a CPU it is refused",
}

# Of transformers, read by code that is ours or is replaced: each has its effect all the same.
READ_HERE = """
output_dir per_device_train_batch_size gradient_accumulation_steps max_steps seed bf16 fp16 use_cpu
remove_unused_columns train_sampling_strategy prediction_loss_only per_device_eval_batch_size
include_num_input_tokens_seen include_for_metrics batch_eval_metrics eval_accumulation_steps eval_do_concat_batches
eval_use_gather_object average_tokens_across_devices ignore_data_skip neftune_noise_alpha
"""

# Of transformers, read by code that nothing here takes the place of.
TRANSFORMERS = """
num_train_epochs learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay
adam_beta1 adam_beta2 adam_epsilon optim_target_modules max_grad_norm bf16_full_eval fp16_full_eval tf32
activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config use_cache
torch_empty_cache_steps auto_find_batch_size logging_strategy logging_steps logging_first_step log_on_each_node
logging_nan_inf_filter log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay eval_on_start save_only_model
save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token
hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end metric_for_best_model
greater_is_better restore_callback_states_from_checkpoint full_determinism data_seed accelerator_config
parallelism_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order label_names length_column_name
ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp
fsdp_config deepspeed debug skip_memory_metrics do_train do_eval do_predict resume_from_checkpoint local_rank
"""

ARGUMENTS = {
    "model": "test_loading",
    "ref_model": "test_row_inputs",
    "args": "test_trl_surface",
    "data_collator": "test_trl_surface: refused",
    "train_dataset": "test_row_inputs",
    "eval_dataset": "test_row_inputs",
    "processing_class": "test_trl_surface",
    "compute_metrics": "test_trl_contract",
    "callbacks": "test_trl_surface",
    "optimizers": "test_trl_surface",
    "quantization_config": "test_loading",
    "peft_config": "test_trl_contract",
}
