"""Small random networks in the files of the published ones, for weights that a test cannot have."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
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


def openai_whisper(file: Path, seed: int) -> None:
    """A checkpoint of OpenAI's with the vocabulary of the multilingual ones; it says at most eight tokens a window."""
    from whisper.model import ModelDimensions, Whisper

    width = {"state": 32, "head": 2, "layer": 1}
    sizes = {f"n_{side}_{name}": size for side in ("audio", "text") for name, size in width.items()}
    dims = {**sizes, "n_mels": 80, "n_audio_ctx": 1500, "n_text_ctx": 16, "n_vocab": 51_865, "n_text_layer": 2}
    torch.manual_seed(seed)
    network = Whisper(ModelDimensions(**dims))
    torch.nn.init.normal_(network.decoder.positional_embedding)  # which it leaves as the memory was
    torch.save({"dims": dims, "model_state_dict": network.state_dict()}, file)


def onnx_classifier(file: Path, layers: Sequence[np.ndarray], classes: Sequence[str], inputs: tuple[int, ...]) -> None:
    """A network as the MTG publishes them: matrices one after the other, every output a sigmoid.

    The mean over all but the first and last axis of `inputs`, [batch, *inputs], goes in; the last output is
    "activations", the one before, if there is one, "embeddings". The metadata has TensorFlow's names, as theirs does.
    """
    names = ["embeddings", "activations"][-len(layers) :]
    nodes, initializers, last = [], [], "input"
    if len(inputs) > 1:
        nodes.append(onnx.helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1], keepdims=0))
        last = "mean"
    for name, matrix in zip(names, layers, strict=True):
        initializers.append(onnx.numpy_helper.from_array(matrix.astype(np.float32), f"{name}-matrix"))
        nodes += [
            onnx.helper.make_node("MatMul", [last, f"{name}-matrix"], [f"{name}-sum"]),
            onnx.helper.make_node("Sigmoid", [f"{name}-sum"], [name]),
        ]
        last = name
    graph = onnx.helper.make_graph(
        nodes,
        "random",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", *inputs])],
        [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", matrix.shape[1]])
            for name, matrix in zip(names, layers, strict=True)
        ],
        initializers,
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), file)
    purposes = {"activations": "predictions", "embeddings": "embeddings"}
    outputs = [{"name": f"PartitionedCall:{i}", "output_purpose": purposes[name]} for i, name in enumerate(names)]
    metadata = {"classes": list(classes), "schema": {"outputs": outputs}}
    file.with_suffix(".json").write_text(json.dumps(metadata), encoding="utf-8")


DISCOGS_STYLES = ("Electronic---House", "Electronic---Techno", "Rock---Indie Rock")
DISCOGS_MOODS = ("happy", "sad")
_EMBEDDING = 1280


def discogs_effnet(folder: Path, seed: int) -> dict[str, list[np.ndarray]]:
    """The network and one classifier, in folders of the model store's names; returns their matrices."""
    generator = np.random.default_rng(seed)
    made = {
        "discogs-effnet": [
            generator.normal(0, 0.1, (96, _EMBEDDING)),
            generator.normal(0, 0.05, (_EMBEDDING, len(DISCOGS_STYLES))),
        ],
        "discogs-effnet-moodtheme": [generator.normal(0, 0.05, (_EMBEDDING, len(DISCOGS_MOODS)))],
    }
    for name in made:
        (folder / name).mkdir(parents=True)
    onnx_classifier(
        folder / "discogs-effnet/discogs-effnet-bsdynamic-1.onnx", made["discogs-effnet"], DISCOGS_STYLES, (128, 96)
    )
    onnx_classifier(
        folder / "discogs-effnet-moodtheme/mtg_jamendo_moodtheme-discogs-effnet-1.onnx",
        made["discogs-effnet-moodtheme"],
        DISCOGS_MOODS,
        (_EMBEDDING,),
    )
    return made
