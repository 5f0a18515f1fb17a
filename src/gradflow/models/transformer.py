"""A transformer over sequences of symbols or numbers, causal where the task asks for what comes next."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from gradflow.models.attention import Transformer as Stack
from gradflow.models.checks import one_of
from gradflow.spec import Spec


class Tokens(nn.Module):
    """Symbols become the rows of an embedding, numbers go through a linear layer."""

    def __init__(self, spec: Spec, width: int) -> None:
        super().__init__()
        self.length = spec.shape[0]
        self.layer = nn.Embedding(spec.tokens, width) if spec.tokens else nn.Linear(spec.shape[1], width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@final
class Transformer(Stack):
    """`causal` is true or false, or None for what the task asks for: memory tasks let every step see all others."""

    kinds = ("sequence",)

    def __init__(self, spec: Spec, causal: bool | None = None, **shared: Any) -> None:
        one_of("causal", causal, (None, True, False))
        super().__init__(spec, Tokens, causal=causal, **shared)
