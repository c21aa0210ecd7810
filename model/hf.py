"""To and from Hugging Face's DBRX: a folder with config.json and safetensors.

Needs   a folder or a hub repository of model type `dbrx`; or a MoELM.
Yields  a MoELM with the same logits; or a folder that `AutoModelForCausalLM.from_pretrained` reads.

Weights go tensor by tensor, so the model stands in memory once. Nothing is unpickled: a repository
without safetensors is refused. How a configuration is translated, and what is odd about it, is in
model/hf_config.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from model.errors import DataError, TokenizerMismatch, TrainingStateError
from model.hf_config import config_from_hf, config_to_hf
from model.lm import MoELM

_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"


def load_hf(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    rope_theta: float | None = None,
    drop_training_noise: bool = False,
) -> MoELM:
    """The MoELM with the weights of a Hugging Face DBRX.

    Args:
        path_or_repo: a folder; or, where there is no such folder, a repository of the hub, which is
            downloaded.
        revision: branch, tag or commit of the repository.
        dtype: of the weights; None keeps that of the files.
        device: where the weights go.
        rope_theta: base of the rotary frequencies, to decide between values that contradict each
            other.
        drop_training_noise: load a model that has dropout or jitter, and leave them out.

    Raises:
        DataError: no such folder or repository, or no safetensors in it.
        ConfigError: the model is not a DBRX that MoELM can be; the message lists every difference.
        TrainingStateError: weights are missing, too many, misshapen or unreadable.

    Example:
        >>> import tempfile
        >>> from model.config import NANO
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = save_hf(MoELM(NANO), folder + "/nano")
        ...     load_hf(written).cfg == NANO
        True
    """
    folder = _fetch(path_or_repo, revision)
    files = _weight_files(folder)
    config = config_from_hf(
        _read_json(folder / "config.json"),
        rope_theta=rope_theta,
        drop_training_noise=drop_training_noise,
    )
    with torch.device("meta"):
        lm = MoELM(config)
    waiting = dict(_places(lm))
    for file in files:
        for name, tensor in _tensors(file):
            place = waiting.pop(name, None)
            if place is None:
                raise TrainingStateError(
                    f"{file} holds {name!r}, which this model has no place for or has already: "
                    f"expected each weight of a dbrx with {config.n_layers} blocks once."
                )
            try:
                place(tensor, torch.device(device), dtype)
            except ValueError as error:
                raise TrainingStateError(f"{name!r} in {file}: {error}") from None
    if waiting:
        some = ", ".join(list(waiting)[:3]) + (", ..." if len(waiting) > 3 else "")
        raise TrainingStateError(
            f"{folder} lacks {len(waiting)} weights ({some}): download or copy the folder again."
        )
    return lm


def save_hf(
    lm: MoELM, folder: str | Path, tokenizer: Any = None, *, shard_bytes: int = 5 << 30
) -> Path:
    """Writes the model as a Hugging Face DBRX: config.json, safetensors, a tokenizer if given.

    The folder appears when all of it is written.

    Args:
        lm: the model.
        folder: must not exist, or be empty.
        tokenizer: a `tokenizers.Tokenizer`, or a tokenizer of transformers.
        shard_bytes: a file of weights is closed before it grows beyond this.

    Returns:
        The folder.

    Raises:
        DataError: there is something in the folder.
        ConfigError: Hugging Face's DBRX cannot be this model.
        TokenizerMismatch: the tokenizer makes tokens that the model does not have.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is there already and not empty: choose another, or remove it.")
    config = config_to_hf(lm.cfg, dtype=lm.unembed.weight.dtype)
    if tokenizer is not None and (size := len(_vocabulary(tokenizer))) > lm.cfg.d_vocab:
        raise TokenizerMismatch(
            f"the tokenizer has {size} entries, the model d_vocab={lm.cfg.d_vocab}: give the "
            f"tokenizer that the model was trained with."
        )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_json(partial / "config.json", config)
    _write_weights(partial, lm, shard_bytes)
    if tokenizer is not None:
        _write_tokenizer(partial, tokenizer)
    if folder.exists():
        folder.rmdir()
    return partial.rename(folder)


# Shapes: E experts, F d_mlp, D d_model. Theirs: w1, v1, w2 each (E x F, D). Ours: W_gate_in (E, D,
# 2F), W_out (E, F, D).

_BLOCK = {
    "norm_attn_norm.norm_1.weight": "ln1.weight",
    "norm_attn_norm.attn.Wqkv.weight": "attn.W_qkv",
    "norm_attn_norm.attn.out_proj.weight": "attn.W_out",
    "norm_attn_norm.norm_2.weight": "ln2.weight",
    "ffn.router.layer.weight": "mlp.router.weight",
}
_OUTSIDE = {
    "transformer.wte.weight": "embed.weight",
    "transformer.norm_f.weight": "ln_final.weight",
    "lm_head.weight": "unembed.weight",
}


def _same_names(lm: MoELM) -> Iterator[tuple[str, str]]:
    """Their name and ours of every weight that both hold alike."""
    yield from _OUTSIDE.items()
    for layer in range(lm.cfg.n_layers):
        for theirs, own in _BLOCK.items():
            yield f"transformer.blocks.{layer}.{theirs}", f"blocks.{layer}.{own}"


def _hf_tensors(lm: MoELM) -> Iterator[tuple[str, Tensor]]:
    """Every weight under their name and in their shape, made when it is asked for."""
    for theirs, own in _same_names(lm):
        yield theirs, lm.get_parameter(own).detach()
    for layer in range(lm.cfg.n_layers):
        experts = lm.get_submodule(f"blocks.{layer}.mlp.experts")
        gate_EDF, in_EDF = experts.get_parameter("W_gate_in").detach().chunk(2, dim=-1)
        prefix = f"transformer.blocks.{layer}.ffn.experts.mlp."
        yield prefix + "w1", gate_EDF.mT.flatten(0, 1)
        yield prefix + "v1", in_EDF.mT.flatten(0, 1)
        yield prefix + "w2", experts.get_parameter("W_out").detach().flatten(0, 1)


Place = Callable[[Tensor, torch.device, torch.dtype | None], None]


def _places(lm: MoELM) -> Iterator[tuple[str, Place]]:
    """What takes in each weight, by their name; the first one makes a parameter real."""
    for theirs, own in _same_names(lm):
        yield theirs, _place(lm, own)
    F = lm.cfg.d_mlp
    for layer in range(lm.cfg.n_layers):
        own = f"blocks.{layer}.mlp.experts."
        prefix = f"transformer.blocks.{layer}.ffn.experts.mlp."
        yield prefix + "w1", _place(lm, own + "W_gate_in", slice(0, F), turned=True)
        yield prefix + "v1", _place(lm, own + "W_gate_in", slice(F, 2 * F), turned=True)
        yield prefix + "w2", _place(lm, own + "W_out")


def _place(lm: MoELM, own: str, part: slice = slice(None), turned: bool = False) -> Place:
    """Copies a tensor into (the columns `part` of) a parameter."""
    owner, _, attribute = own.rpartition(".")

    def place(tensor: Tensor, device: torch.device, dtype: torch.dtype | None) -> None:
        module = lm.get_submodule(owner)
        parameter = module.get_parameter(attribute)
        if parameter.is_meta:
            parameter = Parameter(
                torch.empty(parameter.shape, dtype=dtype or tensor.dtype, device=device)
            )
            setattr(module, attribute, parameter)
        hole = parameter.data[..., part]
        hole = hole.mT if turned else hole
        expected = (hole.shape[0] * hole.shape[1], hole.shape[2]) if hole.dim() == 3 else hole.shape
        if tensor.shape != expected:
            raise ValueError(f"has shape {tuple(tensor.shape)}, expected {tuple(expected)}.")
        hole.copy_(tensor.view(hole.shape))

    return place


def _fetch(path_or_repo: str | Path, revision: str | None) -> Path:
    """The folder itself, or a local copy of the repository."""
    folder = Path(path_or_repo)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                str(path_or_repo), revision=revision, allow_patterns=["*.json", "*.safetensors"]
            )
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"no folder {path_or_repo}, and no repository of that name could be read ({reason}): "
            f"expected a folder with config.json and safetensors, or owner/name on the hub."
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder, as its index lists them."""
    if (folder / _INDEX).is_file():
        names = sorted(set(_read_json(folder / _INDEX)["weight_map"].values()))
    else:
        names = [_WHOLE]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        remedy = (
            "its weights are pickled, and reading those can run code: convert them to safetensors"
            if pickled
            else "download or copy the folder again"
        )
        raise DataError(f"{folder} has no {missing[0]}: {remedy}.")
    return [folder / name for name in names]


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one file, one at a time."""
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - a handle, not a dict
                yield name, opened.get_tensor(name)
    except SafetensorError as error:
        raise TrainingStateError(
            f"{file} cannot be read ({error}): download or copy it again."
        ) from error


def _write_weights(folder: Path, lm: MoELM, shard_bytes: int) -> None:
    """One file of weights, or several and their index."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = total = 0

    def close() -> None:
        save_file(held, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in _hf_tensors(lm):
        bytes_ = tensor.numel() * tensor.element_size()
        if held and size + bytes_ > shard_bytes:
            close()
            size = 0
        held[name] = tensor.cpu().contiguous()
        size, total = size + bytes_, total + bytes_
    close()
    if len(shards) == 1:
        (folder / "0.part").rename(folder / _WHOLE)
        return
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for i, file in enumerate(files):
        (folder / f"{i}.part").rename(folder / file)
    weight_map = {n: file for file, shard in zip(files, shards, strict=True) for n in shard}
    _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    """Token -> id, added tokens included."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Files from which `AutoTokenizer.from_pretrained` makes the same tokenizer."""
    if not hasattr(tokenizer, "save_pretrained"):
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    tokenizer.save_pretrained(folder)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise DataError(f"{file.parent} has no {file.name}: expected a Hugging Face model folder.")
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}): download or copy it again.") from error
    return values


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
