"""High-dimensional sparse embeddings for collaborative filtering, trained on Ray and TorchRec.

`hse_dist.Recommender` answers from an export, `hse_dist.LiveRecommender` from one that is replaced meanwhile; they are
imported on first use, so that the package itself stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hse_dist.export.live import LiveRecommender
    from hse_dist.export.recommender import Recommender

__version__ = "0.1.0"
__all__ = ["LiveRecommender", "Recommender", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LiveRecommender":
        from hse_dist.export.live import LiveRecommender

        return LiveRecommender
    if name != "Recommender":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hse_dist.export.recommender import Recommender

    return Recommender
