"""New adapters on a model that cannot have them where they are asked for."""

from __future__ import annotations

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from modpo.base.errors import InputError
from modpo.experiment.sections import LoraSection
from modpo.models.adapters import add_adapters


def test_a_state_space_model_is_told_to_name_its_modules() -> None:
    """PEFT refuses some of its linear layers, so `all-linear`, the default, is no way out."""
    with torch.device("meta"):
        outline = MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(InputError, match=r"out_proj.*; fix: name modules of this model that can, such as"):
        add_adapters(outline, LoraSection(), "experiment.yaml:4")
    assert add_adapters(outline, LoraSection(target_modules=["in_proj"]), "experiment.yaml:4")
