"""Losses for dense self-supervised learning, as pure functions of tensors.

    entropy_sums -> EntropySums -> entropy_of_mean, mean_entropy -> entropy_floor

Compiled operators are used where em-kernels is installed (`em_losses.kernels`).
"""

from em_losses.entropy import (
    EntropySums,
    entropy_of_mean,
    entropy_sums,
    entropy_sums_and_probabilities,
    mean_entropy,
    plain_entropy_sums,
)
from em_losses.kernels import kernels_in_use
from em_losses.mutual_information import cross_entropy, entropy_floor

__all__ = [
    "EntropySums",
    "cross_entropy",
    "entropy_floor",
    "entropy_of_mean",
    "entropy_sums",
    "entropy_sums_and_probabilities",
    "kernels_in_use",
    "mean_entropy",
    "plain_entropy_sums",
]
