"""What of PEFT is not served, each with the reason and the way out. Data only."""

from __future__ import annotations

from collections.abc import Mapping

_CONVERT = "turn it into LoRA with peft.save_as_lora(path, model, rank=...) and upload that"
_RETRAIN = "train a LoRA, or one of the other methods that are served"

_SEQUENCE = "it puts vectors of its own before or among the tokens of a prompt"
_ROTATION = "it multiplies the base weights by a matrix instead of adding one of low rank"
_BASE = "it takes the base weights apart and trains a piece of them"
_ROUTING = "it chooses between several adapters for every token"
_FULL_RANK = "what it adds is not of low rank"
_GENERATED = "it derives its matrices from a few numbers"

METHODS: Mapping[str, tuple[str, str]] = {
    "ADAMSS": (_BASE, _RETRAIN),
    "ADAPTION_PROMPT": (_SEQUENCE, _RETRAIN),
    "BOFT": (_ROTATION, _RETRAIN),
    "C3A": (_FULL_RANK, _CONVERT),
    "CARTRIDGE": (_SEQUENCE, _RETRAIN),
    "CPT": (_SEQUENCE, _RETRAIN),
    "DEFT": (_ROTATION, _RETRAIN),
    "DELORA": ("it scales its factors by norms of the base weights", _CONVERT),
    "FOURIERFT": (_FULL_RANK, _CONVERT),
    "FROD": (_BASE, _RETRAIN),
    "GLORA": (_ROTATION, _RETRAIN),
    "GRALORA": ("it cuts each matrix into blocks with factors of their own", _CONVERT),
    "HIRA": ("it multiplies the base weights element by element", _RETRAIN),
    "HRA": (_ROTATION, _RETRAIN),
    "LILY": (_ROUTING, _RETRAIN),
    "LN_TUNING": ("it trains the norms of the base", _RETRAIN),
    "MULTITASK_PROMPT_TUNING": (_SEQUENCE, _RETRAIN),
    "OFT": (_ROTATION, _RETRAIN),
    "OSF": (_BASE, _RETRAIN),
    "PEANUT": ("its update of a matrix is a small neural network over the base weights", _RETRAIN),
    "POLY": (_ROUTING, _RETRAIN),
    "PREFIX_TUNING": (_SEQUENCE, _RETRAIN),
    "PROMPT_TUNING": (_SEQUENCE, _RETRAIN),
    "PSOFT": (_BASE, _CONVERT),
    "PVERA": ("its factors are drawn at random", _RETRAIN),
    "P_TUNING": (_SEQUENCE, _RETRAIN),
    "RANDLORA": (_FULL_RANK, _CONVERT),
    "ROAD": (_ROTATION, _RETRAIN),
    "SHADOW": ("it is a second network beside the base", _RETRAIN),
    "SHIRA": (_FULL_RANK, _RETRAIN),
    "SUPERTUNING": (_FULL_RANK, _RETRAIN),
    "TINYLORA": (_BASE, _CONVERT),
    "UNILORA": (_GENERATED, _CONVERT),
    "VBLORA": (_GENERATED, _CONVERT),
    "WAVEFT": (_FULL_RANK, _CONVERT),
    "XLORA": (_ROUTING, _RETRAIN),
}
"""peft_type -> (why it is not served, the way out)."""

FIELDS: Mapping[str, tuple[str, str]] = {
    "layer_replication": ("layer_replication_unsupported", "it changes the layers of the base"),
    "target_parameters": ("target_parameters_unsupported", "only whole modules take an adapter"),
    "use_qalora": ("qalora_unsupported", "QALoRA pools the inputs of a quantised base"),
    "arrow_config": ("arrow_unsupported", "Arrow routes between several adapters"),
    "kasa_config": ("kasa_unsupported", "KaSA changes the base weights"),
}
"""Fields that change what is computed: field -> (code, why)."""
