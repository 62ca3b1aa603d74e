"""Losses by ranking, beside the cosine of `kernels.py`: sampled softmax and Bayesian personalised ranking.

In: scores of a block of users, their histories as positions, and what they are divided by. Out: a scalar. An item of a
history is compared with candidates that are in none of the user's; its own contribution to its score is taken out
first, as the cosine loss does. Scores are of user vectors at length 1, divided by a temperature that is trained.

Shapes: B users, C candidates, L history positions, n negatives a position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-6
"""A user vector that is shorter has no direction."""


@dataclass(frozen=True)
class Ranked:
    """A block of users.

    Attributes:
        scores_cb: float32 [C, B]. own: float32 [L], an item's contribution to its own score.
        positions, user: int64 [L], into C and B.
        shares: float32 [B], what users count. scale: float32 [B], what scores are multiplied by.
    """

    scores_cb: Tensor
    own: Tensor
    positions: Tensor
    user: Tensor
    shares: Tensor
    scale: Tensor

    @property
    def flat(self) -> Tensor:
        """Places of the histories in the scores, int64 [L]."""
        return self.positions * self.scores_cb.shape[1] + self.user

    def hits(self) -> Tensor:
        """Scaled scores of the histories, [L]."""
        return (self.scores_cb.reshape(-1)[self.flat] - self.own) * self.scale[self.user]

    def mean(self, losses: Tensor) -> Tensor:
        """The weighted mean over users of the mean over a user's history of `losses` [L]."""
        lengths = torch.bincount(self.user, minlength=len(self.shares)).clamp_min(1)
        return (losses * (self.shares / lengths)[self.user]).sum()


def scale_of(u_kb: Tensor, temperature: Tensor) -> Tensor:
    """1 / (length of the user vector · temperature), [B]."""
    return 1.0 / (u_kb.square().sum(0).clamp_min(SMALLEST**2).sqrt() * temperature)


def softmax_loss(block: Ranked, log_chances: Tensor | None) -> Tensor:
    """Sampled softmax: − log of an item's share of exp(score) among itself and the candidates that the user has not.

    Args:
        log_chances: [C], of being a candidate at all; taken off scores, so that popular items, which are candidates
            more often, are not pushed down for it (log-Q correction: Yi et al., RecSys 2019; Bengio & Senécal 2008).
    """
    logits, hits = block.scores_cb * block.scale, block.hits()
    if log_chances is not None:
        logits, hits = logits - log_chances[:, None], hits - log_chances[block.positions]
    seen = torch.zeros(logits.numel(), dtype=torch.bool, device=logits.device)
    seen[block.flat] = True
    others = logits.masked_fill(seen.view_as(logits), -torch.inf).logsumexp(0)
    # a user who has every candidate has nothing to lose to
    return block.mean(F.softplus(others.clamp_min(-1e30)[block.user] - hits))


def bpr_loss(block: Ranked, negatives: int, generator: torch.Generator | None) -> Tensor:
    """BPR (Rendle et al., UAI 2009): − log σ(score − score of another candidate), for `negatives` of these a position.

    Drawn candidates that the user has are left out.

    Args:
        generator: of the draws, on the host.
    """
    count, users = block.scores_cb.shape
    drawn = torch.randint(max(count, 1), (negatives, len(block.positions)), generator=generator)
    places = drawn.to(block.positions.device) * users + block.user
    seen = torch.zeros(count * users, dtype=torch.bool, device=block.positions.device)
    seen[block.flat] = True
    others = block.scores_cb.reshape(-1)[places] * block.scale[block.user]
    losses = F.softplus(others - block.hits()).masked_fill(seen[places], 0.0)
    return block.mean(losses.sum(0) / (~seen[places]).sum(0).clamp_min(1))
