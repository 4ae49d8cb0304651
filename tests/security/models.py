"""Models, tokenizers, chat templates and adapters of strangers."""

from __future__ import annotations

import json
import pickle

from tests.security.attack import DEEP, Attack, Build, attack
from tests.security.runs import chatted_with_it, evaluated_with_it
from tests.security.yard import CHAT, Pickled, Yard, edit_json

# --- models -------------------------------------------------------------------------------------------------


@attack(2, "has no .safetensors weights")
def model_pickled(yard: Yard) -> list[str]:
    import torch

    (yard.model / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Pickled(yard.shell)}, yard.model / "pytorch_model.bin")
    return yard.experiment()


@attack(0)
def model_with_a_pickle_beside_its_weights(yard: Yard) -> list[str]:
    import torch

    torch.save({"lm_head.weight": Pickled(yard.shell)}, yard.model / "pytorch_model.bin")
    (yard.model / "training_args.bin").write_bytes(pickle.dumps(Pickled(yard.shell)))
    (yard.model / "optimizer.pt").write_bytes(pickle.dumps(Pickled(yard.shell)))
    return yard.experiment()


@attack(2, "custom code")
def model_with_code_of_its_own(yard: Yard) -> list[str]:
    (yard.model / "modeling_evil.py").write_text(yard.python)
    auto_map = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.Evil"}
    edit_json(yard.model / "config.json", model_type="evil", auto_map=auto_map)
    return yard.experiment()


@attack(0)
def model_of_a_known_kind_with_code_of_its_own(yard: Yard) -> list[str]:
    (yard.model / "modeling_evil.py").write_text(yard.python)
    (yard.model / "__init__.py").write_text(yard.python)
    auto_map = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.Evil"}
    edit_json(yard.model / "config.json", auto_map=auto_map)
    return yard.experiment()


@attack(2, "custom code")
def tokenizer_with_code_of_its_own(yard: Yard) -> list[str]:
    (yard.model / "tokenization_evil.py").write_text(yard.python)
    auto_map = {"AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.EvilFast"]}
    edit_json(yard.model / "tokenizer_config.json", tokenizer_class="Evil", auto_map=auto_map)
    return yard.experiment()


@attack(0)
def model_with_a_way_to_generate_of_its_own(yard: Yard) -> list[str]:
    (yard.model / "custom_generate").mkdir()
    (yard.model / "custom_generate" / "generate.py").write_text(f"{yard.python}\ndef generate(model): ...\n")
    edit_json(yard.model / "generation_config.json", custom_generate="custom_generate", trust_remote_code=True)
    return yard.experiment()


@attack(2, "wants code from the Hub (attn_implementation: 'evil/kernel')")
def model_with_a_kernel_of_the_hub(yard: Yard) -> list[str]:
    edit_json(yard.model / "config.json", attn_implementation={"": "evil/kernel"})
    return yard.experiment()


@attack(2, "names weights that are not .safetensors files of its own ('../../outside/stolen.safetensors')")
def model_whose_index_names_another_folder(yard: Yard) -> list[str]:
    (yard.model / "model.safetensors").rename(yard.outside / "stolen.safetensors")
    (yard.model / "other.safetensors").write_bytes(b"")
    weight_map = {"lm_head.weight": "../../outside/stolen.safetensors"}
    index = {"metadata": {}, "weight_map": weight_map}
    (yard.model / "model.safetensors.index.json").write_text(json.dumps(index))
    return yard.experiment()


@attack(2, "names weights that are not .safetensors files of its own ('evil.bin')")
def model_whose_index_names_a_pickle(yard: Yard) -> list[str]:
    (yard.model / "model.safetensors").rename(yard.model / "model-1.safetensors")
    (yard.model / "evil.bin").write_bytes(pickle.dumps(Pickled(yard.shell)))
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "evil.bin"}}
    (yard.model / "model.safetensors.index.json").write_text(json.dumps(index))
    return yard.experiment()


@attack(2, "names weights that are not .safetensors files of its own")
def model_whose_configuration_names_another_folder(yard: Yard) -> list[str]:
    edit_json(yard.model / "config.json", transformers_weights=str(yard.outside / "x.safetensors"))
    return yard.experiment()


@attack(2, "cannot be read")
def model_with_a_giant_header(yard: Yard) -> list[str]:
    (yard.model / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    return yard.experiment()


@attack(2, "cannot be read")
def model_with_overlapping_tensors(yard: Yard) -> list[str]:
    header = json.dumps(
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        }
    ).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(12)
    (yard.model / "model.safetensors").write_bytes(weights)
    return yard.experiment()


@attack(2, "cannot be read")
def model_whose_weights_are_a_link_to_something_else(yard: Yard) -> list[str]:
    (yard.model / "model.safetensors").unlink()
    (yard.model / "model.safetensors").symlink_to(yard.precious)
    return yard.experiment()


@attack(2, "config.json cannot be read")
def model_with_a_configuration_nested_without_end(yard: Yard) -> list[str]:
    (yard.model / "config.json").write_text('{"model_type": ' + DEEP)
    return yard.experiment()


@attack(2, "config.json cannot be read")
def model_with_a_number_of_ten_thousand_digits(yard: Yard) -> list[str]:
    (yard.model / "config.json").write_text('{"model_type": "llama", "vocab_size": ' + "9" * 10_000 + "}")
    return yard.experiment()


@attack(2, "cannot be read")
def tokenizer_that_is_no_tokenizer(yard: Yard) -> list[str]:
    (yard.model / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": ' + DEEP)
    return yard.experiment()


# --- chat templates -----------------------------------------------------------------------------------------


def templated(yard: Yard, template: str) -> list[str]:
    """Conversational data, and a model with that chat template."""
    (yard.model / "chat_template.jinja").write_text(template)
    yard.rows(CHAT)
    return yard.experiment()


@attack(2, "the chat template refuses")
def template_that_walks_the_classes(yard: Yard) -> list[str]:
    walk = "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{% if c.__name__ == 'Popen' %}"
    return templated(yard, walk + "{{ c('" + yard.shell + "', shell=True) }}{% endif %}{% endfor %}")


@attack(2, "the chat template refuses")
def template_that_reaches_for_globals(yard: Yard) -> list[str]:
    return templated(yard, "{{ lipsum.__globals__['os'].popen('" + yard.shell + "').read() }}")


@attack(2, "the chat template refuses")
def template_that_reaches_for_its_own_functions(yard: Yard) -> list[str]:
    reach = "{{ raise_exception.__globals__['__builtins__']['__import__']('os').system('" + yard.shell + "') }}"
    return templated(yard, reach)


@attack(2, "the chat template refuses")
def template_that_formats_its_way_out(yard: Yard) -> list[str]:
    leak = "{{ '{0.__init__.__globals__[__builtins__][open]}'.format(cycler) }}"
    return templated(yard, leak + "{{ cycler.__init__.__globals__.os.system('" + yard.shell + "') }}")


# --- adapters -----------------------------------------------------------------------------------------------


@attack(2, "has no adapter_model.safetensors")
def adapter_pickled(yard: Yard) -> list[str]:
    import torch

    (yard.adapter / "adapter_model.safetensors").unlink()
    torch.save({"base_model.model.lora_A": Pickled(yard.shell)}, yard.adapter / "adapter_model.bin")
    return yard.by_adapter()


@attack(0)
def adapter_with_a_pickle_beside_its_weights(yard: Yard) -> list[str]:
    import torch

    torch.save({"base_model.model.lora_A": Pickled(yard.shell)}, yard.adapter / "adapter_model.bin")
    return yard.by_adapter()


@attack(2, "wants what lies outside of it (megatron_config)")
def adapter_that_imports_a_module(yard: Yard) -> list[str]:
    """PEFT imports what `megatron_core` names."""
    (yard.folder / "megatron").mkdir()
    (yard.folder / "megatron" / "core.py").write_text(yard.python)
    return yard.by_adapter(megatron_config={"tensor_model_parallel_size": 1}, megatron_core="megatron.core")


@attack(2, "wants what lies outside of it (adapters)")
def adapter_of_other_adapters(yard: Yard) -> list[str]:
    """PEFT loads them, from wherever they are."""
    settings = {"peft_type": "XLORA", "hidden_size": 64, "adapters": {"evil": str(yard.outside)}}
    return yard.by_adapter(**settings)


@attack(0)
def adapter_that_names_the_library_of_its_base(yard: Yard) -> list[str]:
    """PEFT's AutoPeftModel imports it."""
    (yard.folder / "evil_library.py").write_text(yard.python)
    return yard.by_adapter(auto_mapping={"base_model_class": "Evil", "parent_library": "evil_library"})


@attack(2, "cannot be read")
def adapter_with_a_giant_header(yard: Yard) -> list[str]:
    (yard.adapter / "adapter_model.safetensors").write_bytes((2**40).to_bytes(8, "little"))
    return yard.by_adapter()


@attack(2, "does not fit its base")
def adapter_with_a_broken_pattern(yard: Yard) -> list[str]:
    return yard.by_adapter(target_modules="((")


@attack(2, "cannot be read")
def adapter_with_a_configuration_nested_without_end(yard: Yard) -> list[str]:
    command = yard.by_adapter()
    (yard.adapter / "adapter_config.json").write_text('{"task_type": ' + DEEP)
    return command


@attack(2, "has no config.json")
def adapter_with_its_base_elsewhere(yard: Yard) -> list[str]:
    """The base of a classifier's adapter is where its configuration says: that must be a model all the same."""
    import torch
    from safetensors.torch import save_file

    head = {"base_model.model.score.weight": torch.zeros(1, 64)}
    save_file(head, yard.adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    return yard.by_adapter("reward_model", task_type="SEQ_CLS", base_model_name_or_path="../outside")


# --- adapters planted as points of a run --------------------------------------------------------------------


def _pickled(use: Build) -> Attack:
    @attack(2, "has no adapter_model.safetensors")
    def build(yard: Yard) -> list[str]:
        adapter_pickled.build(yard)
        return use(yard)

    return build


def _importing(use: Build) -> Attack:
    @attack(2, "wants what lies outside of it (megatron_config)")
    def build(yard: Yard) -> list[str]:
        adapter_that_imports_a_module.build(yard)
        return use(yard)

    return build


pickled_point_evaluated = _pickled(evaluated_with_it)
pickled_point_chatted_with = _pickled(chatted_with_it)
importing_point_evaluated = _importing(evaluated_with_it)
importing_point_chatted_with = _importing(chatted_with_it)
