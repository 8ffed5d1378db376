"""Small random networks in the files of the published ones, for weights that a test cannot have."""

import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from demucs.htdemucs import HTDemucs
from safetensors.torch import save_file
from transformers import HubertConfig, HubertModel

from stages.nets.all_in_one import _open_package

HTDEMUCS_SOURCES = ["drums", "bass", "other", "vocals"]
HTDEMUCS_SEGMENT = Fraction(13, 10)  # 1.3 s
_HTDEMUCS_SIZE = {
    "channels": 8,
    "t_layers": 1,
    "bottom_channels": 0,
    "nfft": 1024,
    "depth": 3,
    "t_heads": 2,
    "dconv_mode": 0,
}

_HUBERT_SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
MERT = {  # what its config.json says besides sizes
    "model_type": "mert_model",
    "architectures": ["MERTModel"],
    "auto_map": {"AutoConfig": "configuration_MERT.MERTConfig", "AutoModel": "modeling_MERT.MERTModel"},
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "feat_proj_layer_norm": True,
    "feature_extractor_cqt": False,
    "feature_extractor_cqt_bins": 336,
    "deepnorm": False,
    "attention_relax": 32.0,
    "sample_rate": 24_000,
    "torch_dtype": "float32",
}
MHUBERT = {"model_type": "hubert", "architectures": ["HubertModel"], "torch_dtype": "float32"}

# As released, but with six levels for eleven: the widest neighbourhood is then 3.2 s instead of 102 s.
_ALL_IN_ONE_SIZE = {"depth": 6, "best_threshold_beat": 0.19, "best_threshold_downbeat": 0.19}


def htdemucs(file: Path, seed: int, **changes: Any) -> HTDemucs:
    """One network as the repositories keep it: safetensors, and how to build it in the metadata."""
    torch.manual_seed(seed)
    options = {**_HTDEMUCS_SIZE, "segment": HTDEMUCS_SEGMENT, "samplerate": 44_100}
    network = HTDemucs(HTDEMUCS_SOURCES, **options).eval()
    numerator, denominator = HTDEMUCS_SEGMENT.as_integer_ratio()
    told = options | {"segment": {"_type": "fraction", "numerator": numerator, "denominator": denominator}}
    metadata = {
        "klass": "demucs.htdemucs.HTDemucs",
        "args": json.dumps([HTDEMUCS_SOURCES]),
        "kwargs": json.dumps(told),
        **changes,
    }
    save_file(network.state_dict(), str(file), metadata)
    return network


def hubert(folder: Path, told: dict[str, Any], seed: int) -> HubertModel:
    """MERT or mHuBERT with the weights' names of the time: weight_g and weight_v, and MERT's head for labels."""
    torch.manual_seed(seed)
    known = {name: told[name] for name in told if hasattr(HubertConfig(), name)}
    model = HubertModel(HubertConfig(**_HUBERT_SIZE, **known))
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    weights = {}
    for name, value in model.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        weights[name] = value
    if told["model_type"] == "mert_model":
        weights["final_proj.weight"] = torch.zeros(8, 32)
    folder.mkdir(parents=True)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(_HUBERT_SIZE | told))
    return model.eval()


def all_in_one(file: Path, seed: int) -> Any:
    """A checkpoint as the repository keeps it: a dictionary of the configuration and the weights."""
    _open_package()
    from allin1_infer.config import Config, HarmonixConfig
    from allin1_infer.models.allinone import AllInOne as Network
    from omegaconf import OmegaConf

    config = asdict(Config(data=HarmonixConfig(), defaults=[], **_ALL_IN_ONE_SIZE))
    torch.manual_seed(seed)
    network = Network(OmegaConf.create(config)).eval()
    torch.save({"config": config, "state_dict": network.state_dict()}, file)
    return network


def beat_this(file: Path, seed: int) -> None:
    """Saved as Lightning saves the library's checkpoints."""
    from beat_this.model.beat_tracker import BeatThis

    torch.manual_seed(seed)
    size = {"transformer_dim": 64, "n_layers": 1, "stem_dim": 32}
    state = {f"model.{name}": value for name, value in BeatThis(**size).state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {**size, "lr": 0.0008}}, file)
