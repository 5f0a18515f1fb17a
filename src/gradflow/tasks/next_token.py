"""Which symbol comes next? An answer at each time step, from what came before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

from torch import Tensor

from gradflow.runs.errors import UserError
from gradflow.spec import Spec
from gradflow.tasks._labels import Labels


@final
class NextToken(Labels):
    """Outputs are [B, T, symbols]; the target at a step is the symbol of the next one, or `spec.ignored` where there
    is none. The model may not see it: an output depends on the inputs up to its own step.

    The question is a local one, so a verdict judges the loss over all steps. The trivial answer is one for all steps:
    the frequencies of the symbols.
    """

    asks_for = "symbols"
    causal = True
    memory = False

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        if spec.kind != "sequence" or not spec.per_step:
            raise UserError(
                f"the task next_token is for sequences of symbols (kind sequence, tokens, per_step), not {spec}"
            )

    def check_targets(self, target: Tensor, split: str) -> None:
        if target.shape[1:] != self.spec.shape[:1]:
            raise UserError(f"{split}: targets of shape {tuple(target.shape[1:])} for {self.spec.shape[0]} steps")
        super().check_targets(target, split)

    def trivial(self, targets: Mapping[str, Tensor], loss: str) -> dict[str, float]:
        """Its loss, too, in the units of the metrics that text has: bits and perplexity."""
        scores = super().trivial(targets, loss)
        nats = {split: scores[f"loss/{split}"] for split in targets}
        bits = {f"bits_per_character/{split}": value / math.log(2) for split, value in nats.items()}
        return scores | bits | {f"perplexity/{split}": math.exp(value) for split, value in nats.items()}
