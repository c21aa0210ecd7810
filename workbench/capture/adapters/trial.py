"""What a router's output means, found by trying a stand-in of it on known numbers.

Needs   a router module whose output holds its logits, and their place in it.
Yields  `tried`: the router's Meaning, or a CaptureError that says what does not fit.

Whether logits become probabilities by a softmax or by sigmoids is written nowhere in a module, and
a list of classes is out of date with every release. So the router's own forward is asked: a
stand-in (same class, same settings, small random weights on the CPU, biases zero) routes random
tokens, and the weights that it gives to the chosen experts tell what they were made of. The model
itself, its parameters and its random numbers are not touched.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.capture.adapters.meaning import Meaning, reader
from workbench.capture.adapters.router_site import Scores
from workbench.errors import CaptureError

# Shapes: T tokens, E experts, K chosen a token, D hidden size.

TOKENS = 32


def tried(router: nn.Module, logits_at: int) -> Meaning:
    """What `router` returns, from a trial of a stand-in.

    Args:
        router: returns a tuple of logits (token, expert), ids and gates (token, k), in any order.
        logits_at: place of the logits in it.

    Raises:
        CaptureError: it cannot be tried, does not return ids and gates, or its gates are made of
            neither softmax, sigmoid nor a score function of its logits.
    """
    chosen_per_token = getattr(router, "top_k", None)
    stand_in = _stand_in(router, torch.Generator().manual_seed(0))
    if chosen_per_token == 1:
        # One gate a token is a constant once it is normalised: two tell how they were made.
        stand_in.__dict__["top_k"] = 2
    output = _route(router, stand_in)
    logits_TE, ids_at, gates_at = _places(router, output, logits_at)
    ids_TK, gates_TK = output[ids_at], output[gates_at]
    E = logits_TE.shape[-1]
    scores, score = _made_of(router, logits_TE, ids_TK, gates_TK.float())
    return Meaning(
        num_experts=E,
        experts_per_token=chosen_per_token or ids_TK.shape[-1],
        scores=scores,
        read=reader(logits_at, ids_at, gates_at, E, score),
        ids_from="the router's output",
    )


def settings(router: nn.Module) -> tuple[Any, ...]:
    """All that a trial depends on: routers with equal settings need but one."""
    plain = (int, float, str, bool, type(None))
    values = {n: v for n, v in vars(router).items() if isinstance(v, plain)}
    shapes = [(n, tuple(p.shape)) for n, p in router.named_parameters()]
    config = id(getattr(router, "config", None))
    return type(router), repr(sorted(values.items())), repr(shapes), config


def _stand_in(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A module of the same class and settings with weights of its own, and without hooks."""
    copy = object.__new__(type(module))
    copy.__dict__.update(vars(module))
    # What wraps a forward in place (tensor parallelism, accelerate) sets it on the instance.
    copy.__dict__.pop("forward", None)
    for name in [n for n in vars(module) if n.endswith("_hooks") or n.startswith("_forward_")]:
        copy.__dict__[name] = OrderedDict()
    copy.__dict__["_compiled_call_impl"] = None
    copy.__dict__["training"] = False
    copy.__dict__["_parameters"] = {
        n: _numbers(n, p, generator) for n, p in module._parameters.items()
    }
    copy.__dict__["_buffers"] = {
        n: b if b is None else torch.zeros(b.shape, dtype=b.dtype, device="cpu")
        for n, b in module._buffers.items()
    }
    copy.__dict__["_modules"] = {
        n: m if m is None else _stand_in(m, generator) for n, m in module._modules.items()
    }
    return copy


def _numbers(
    name: str, parameter: Tensor | None, generator: torch.Generator
) -> nn.Parameter | None:
    """Random matrices, so that logits spread over about ±2; scales one; biases zero, for what is
    added after the logits would hide what the gates are made of.
    """
    if parameter is None:
        return None
    shape = tuple(parameter.shape)
    if "bias" in name:
        values = torch.zeros(shape, device="cpu")
    elif len(shape) > 1:
        values = 2 * torch.randn(shape, generator=generator, device="cpu") / shape[-1] ** 0.5
    else:
        values = torch.ones(shape, device="cpu")
    return nn.Parameter(values, requires_grad=False)


def _route(router: nn.Module, stand_in: nn.Module) -> tuple[Any, ...]:
    """The stand-in's output for random tokens; by its class's forward, not the instance's."""
    matrices = [p for n, p in stand_in.named_parameters() if p.ndim == 2 and "bias" not in n]
    matrix = next(iter(matrices), None)
    if matrix is None:
        raise _refused(router, "has no weight matrix, so its input size is not known")
    rows, hidden = matrix.shape
    forward = type(router).forward
    extra = {}
    for name, about in list(inspect.signature(forward).parameters.items())[2:]:
        if "bias" in name:
            extra[name] = torch.zeros(rows)
        elif about.default is about.empty and about.kind is not about.VAR_KEYWORD:
            raise _refused(router, f"needs {name!r} beside the hidden states")
    tokens_TD = torch.randn(TOKENS, hidden, generator=torch.Generator().manual_seed(1))
    failures = []
    with (
        torch.no_grad(),
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
        torch.random.fork_rng(devices=[]),
    ):
        # Some routers take tokens, others rows of tokens, and each refuses the other in its way.
        for hidden_states in (tokens_TD, tokens_TD.unsqueeze(0)):
            try:
                output = forward(stand_in, hidden_states, **extra)
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")
            else:
                return output if isinstance(output, tuple) else (output,)
    raise _refused(router, f"could not be tried on random tokens ({failures[0]})")


def _places(router: nn.Module, output: tuple[Any, ...], logits_at: int) -> tuple[Tensor, int, int]:
    """Logits (token, expert) of a trial, and the places of ids and gates in its output."""
    logits = output[logits_at]
    E = logits.shape[-1]
    shapes = [tuple(o.shape) if isinstance(o, Tensor) else type(o).__name__ for o in output]
    for ids_at, ids in enumerate(output):
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim < 2:
            continue
        for gates_at, gates in enumerate(output):
            if (
                gates_at != logits_at
                and isinstance(gates, Tensor)
                and gates.is_floating_point()
                and gates.shape == ids.shape
                and ids.shape[-1] <= E
            ):
                return logits.reshape(-1, E), ids_at, gates_at
    raise _refused(router, f"returns {shapes}, without expert ids and gates of one shape")


def _made_of(
    router: nn.Module, logits_TE: Tensor, ids_TK: Tensor, gates_TK: Tensor
) -> tuple[Scores, Callable[[Tensor], Tensor] | None]:
    """Which function of the logits the gates are proportional to, token by token."""
    ids_TK = ids_TK.reshape(-1, ids_TK.shape[-1])
    gates_TK = gates_TK.reshape(ids_TK.shape)
    chosen_TK = logits_TE.float().gather(-1, ids_TK.long())

    def fits(score: Callable[[Tensor], Tensor]) -> bool:
        made_TK = score(chosen_TK)
        shares = made_TK / made_TK.sum(-1, keepdim=True)
        return torch.allclose(shares, gates_TK / gates_TK.sum(-1, keepdim=True), atol=1e-4)

    total = logits_TE.float().sum(-1)
    if bool((logits_TE >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-3):
        if fits(lambda p: p):
            return Scores.PROBABILITIES, None
    elif fits(torch.exp):
        return Scores.LOGITS, None
    elif fits(torch.sigmoid):
        return Scores.SIGMOID, None
    score = getattr(router, "score_fn", None)
    if callable(score) and fits(score):
        return Scores.PROBABILITIES, score
    raise _refused(
        router,
        "gives gates that are proportional neither to the softmax nor to the sigmoids of its "
        "logits, nor to a score_fn of its own",
    )


def _refused(router: nn.Module, why: str) -> CaptureError:
    return CaptureError(
        f"router {type(router).__name__} {why}; expected a router that returns logits (token, "
        f"expert), ids and gates (token, k). Say how to read it: "
        f"Recorder(..., routers=workbench.Generic(modules=..., read=...))."
    )
