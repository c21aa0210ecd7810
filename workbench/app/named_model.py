"""A model by the name that somebody types: a preset, a Hugging Face folder, a function.

Needs   the name, a device.
Yields  `named_model`: the model, built, or without weights where it is too large to build here.

The weights of a folder are not read: its configuration tells the shapes, and the weights are drawn
at random. Code that a folder brings along is not run; the function that is named is.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench.errors import UsageError, WorkbenchError

BUILT_ON_CPU = 250_000_000
"""Parameters of the largest model that is built on a CPU: 4 GB with gradients and AdamW."""
BYTES_OF_PARAMETER = 16
"""Weight, gradient and AdamW's two moments, float32."""


class ModelNotFound(WorkbenchError, LookupError):
    """Nothing of that name is a model."""

    exit_code = 3


class ModelBroken(WorkbenchError, RuntimeError):
    """What was named is there, and gives no model."""


@dataclass(frozen=True)
class NamedModel:
    """A model and what is known of it beside."""

    model: nn.Module
    """In training mode, unless a function gave it; on "meta" where it is too large."""
    longest: int | None
    """Positions that it takes at most."""
    rows: int | None = None
    """Rows and positions of its own training plan, where it has one."""
    length: int | None = None


def named_model(name: str, device: torch.device) -> NamedModel:
    """The model of that name.

    Args:
        name: "nano", "small", "base" or "dbrx"; a folder with a config.json; "package.module:f",
            where f() returns an nn.Module.
        device: to build it on.

    Raises:
        ModelNotFound: it is none of these.
        ModelBroken: the folder or the function gives no model; says why.
    """
    from model.config import PRESETS

    if name.lower() in PRESETS:
        return _preset(name.lower(), device)
    path = Path(name).expanduser()
    if path.name == "config.json" and path.is_file():
        path = path.parent
    if name and path.is_dir():
        return _folder(path, device)
    module, colon, function = name.rpartition(":")
    if colon and _is_dotted(module) and function.isidentifier():
        return NamedModel(_call(module, function), None)
    raise ModelNotFound(
        f"no model {name!r}: expected a preset ({', '.join(PRESETS)}), a folder with a Hugging "
        f"Face config.json, or package.module:function that returns an nn.Module. Models are not "
        f"downloaded."
    )


def _preset(name: str, device: torch.device) -> NamedModel:
    from model.config import preset
    from model.lm import MoELM
    from model.training.plan import PLANS

    config, plan = preset(name), PLANS.get(name)
    model = _fitting(lambda: MoELM(config), device)
    if plan is None:
        return NamedModel(model, config.n_ctx)
    return NamedModel(model, config.n_ctx, plan.batch_rows, plan.row_tokens)


def _folder(path: Path, device: torch.device) -> NamedModel:
    if not (path / "config.json").is_file():
        raise ModelNotFound(
            f"{path} has no config.json: expected the folder of a Hugging Face model."
        )
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
        model = _fitting(lambda: _of_config(transformers, config), device)
    except Exception as error:  # whatever is in somebody's folder, it is one line
        raise ModelBroken(
            f"{path}/config.json gives no model: {_one_line(error)}. Expected a configuration "
            f"that transformers {transformers.__version__} knows without code of its own."
        ) from error
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return NamedModel(model.train(), longest if isinstance(longest, int) else None)


def _of_config(transformers: Any, config: Any) -> nn.Module:
    """With a head for text where there is one, else the bare model."""
    kinds = (transformers.AutoModelForCausalLM, transformers.AutoModel)
    first: Exception | None = None
    for kind in kinds:
        try:
            model: nn.Module = kind.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
            return model
        except ValueError as error:
            first = first or error
    assert first is not None
    raise first


def _fitting(build: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """The model on the device, or on "meta" where it would not fit."""
    with torch.device("meta"):
        shape = build()
    parameters = sum(p.numel() for p in shape.parameters())
    if device.type == "cuda":
        fits = parameters * BYTES_OF_PARAMETER < 0.7 * torch.cuda.mem_get_info(device)[0]
    else:
        fits = parameters <= BUILT_ON_CPU
    if not fits:
        return shape.train()
    with device:
        return build().train()


def _call(module: str, function: str) -> nn.Module:
    name = f"{module}:{function}"
    here = os.getcwd()
    # As `python -m` does: what lies in the working folder can be named.
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        made = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ModelBroken(f"{name}: importing it failed: {_one_line(error)}.") from error
        raise ModelNotFound(
            f"no module {error.name!r} for {name}: expected it installed, or in this folder."
        ) from error
    except (Exception, SystemExit) as error:
        raise ModelBroken(f"{name}: importing it failed: {_one_line(error)}.") from error
    build = getattr(made, function, None)
    if not callable(build):
        raise ModelNotFound(f"{module} has no function {function!r}.")
    try:
        model = build()
    except (Exception, SystemExit) as error:
        raise ModelBroken(f"{name}() failed: {_one_line(error)}.") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name}() returned {type(model).__name__}; expected an nn.Module.")
    return model


def _is_dotted(module: str) -> bool:
    return bool(module) and all(part.isidentifier() for part in module.split("."))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:150]
    return f"{type(error).__name__}: {text}".rstrip(" .:")
