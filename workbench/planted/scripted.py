"""Scripted: language models that say exactly what they were told, so that the answer is known.

Needs   a rule: the loss of every token, or texts to know by heart.
Yields  torch modules, tokens (row, pos) to logits (row, pos, vocabulary), for probes to be put to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# Shapes: B rows, P positions, V vocabulary.


class ScriptedLoss(nn.Module):
    """A model whose next-token loss is a given function of its weights and of the text.

    It reads the token that it is asked to predict, as no language model may: that is how its loss
    can be anything.

    Args:
        loss: (tokens (row, pos), weights) to losses, nats, above 0, of shape (row, pos - 1) or one
            that broadcasts to it.
        weights: where it stands.
        vocabulary: tokens.

    Example:
        >>> bowl = ScriptedLoss(lambda tokens, w: 1 + (w**2).sum() / 2, torch.ones(4))
        >>> logits = bowl(torch.tensor([[3, 5]]))
        >>> round(-logits.log_softmax(-1)[0, 0, 5].item(), 4)
        3.0
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        weights: Tensor,
        vocabulary: int = 8,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.vocabulary = vocabulary
        self.weights = nn.Parameter(weights.clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (row, pos, vocabulary): one for the token that follows, 0 for all others."""
        following = tokens[:, 1:]
        loss_BP = self.loss(tokens, self.weights).expand(following.shape)
        logit_BP = torch.log(torch.tensor(self.vocabulary - 1.0)) - torch.expm1(loss_BP).log()
        logits = logit_BP.new_zeros(*tokens.shape, self.vocabulary)
        return logits.scatter(
            -1,
            torch.cat([following, following[:, -1:]], dim=1)[..., None],
            torch.cat([logit_BP, logit_BP[:, -1:]], dim=1)[..., None],
        )


class KnownTexts(nn.Module):
    """A model that knows some texts by heart and continues all else by counting on.

    Args:
        texts: token ids.
        least: tokens after which it recognises a text.
        vocabulary: tokens; the successor of the last is 0.

    Example:
        >>> model = KnownTexts([[3, 1, 4, 1, 5]], least=2, vocabulary=8)
        >>> model(torch.tensor([[3, 1], [3, 2]]))[:, -1].argmax(-1).tolist()
        [4, 3]
    """

    def __init__(self, texts: Sequence[Sequence[int]], least: int, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.following = {
            tuple(text[:end]): int(text[end]) for text in texts for end in range(least, len(text))
        }
        # A model has parameters: that is how its device is told.
        self.confidence = nn.Parameter(torch.tensor(5.0))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (row, pos, vocabulary)."""
        said = [
            [
                self.following.get(tuple(row[: end + 1]), (row[end] + 1) % self.vocabulary)
                for end in range(len(row))
            ]
            for row in tokens.tolist()
        ]
        chosen = torch.tensor(said, device=tokens.device)
        return nn.functional.one_hot(chosen, self.vocabulary) * self.confidence
