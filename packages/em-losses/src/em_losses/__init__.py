"""Losses for self-supervised learning, segmentation and restoration, as pure functions of tensors.

    entropy_sums -> EntropySums -> entropy_of_mean, mean_entropy -> entropy_floor
    divergence_sums -> DivergenceSums -> cross_entropy, information_bound
    pick -> info_nce          draw_directions -> sigreg
    binary_sums -> SegmentationSums -> mean_cross_entropy + dice_loss
    reconstruction_error + gradient_error
    charbonnier, ssim, ms_ssim        discriminator_loss + gradient_penalty, generator_loss

Compiled operators are used where em-kernels is installed (`em_losses.kernels`).
"""

from em_losses.adversarial import discriminator_loss, generator_loss, gradient_penalty
from em_losses.contrastive import info_nce
from em_losses.divergence import DivergenceSums, divergence_sums, plain_divergence_sums
from em_losses.draws import draw_directions, draw_places, pick
from em_losses.entropy import (
    EntropySums,
    entropy_of_mean,
    entropy_sums,
    entropy_sums_and_probabilities,
    mean_entropy,
    plain_entropy_sums,
)
from em_losses.isotropy import sigreg
from em_losses.kernels import kernels_in_use
from em_losses.masked import (
    gradient_error,
    patch_targets,
    plain_reconstruction_error,
    reconstruction_error,
)
from em_losses.mutual_information import (
    cross_entropy,
    diversity,
    entropy_floor,
    gain_over_mean,
    iic,
    information_bound,
    symmetric_cross_entropy,
)
from em_losses.restoration import charbonnier, ms_ssim, ssim
from em_losses.segmentation import (
    SegmentationSums,
    bce_dice,
    binary_sums,
    boundary_weight,
    dice_loss,
    exclusive_sums,
    mean_cross_entropy,
    softmax_dice,
)
from em_losses.views import cross_sample_variance, equivariance

__all__ = [
    "DivergenceSums",
    "EntropySums",
    "SegmentationSums",
    "bce_dice",
    "binary_sums",
    "boundary_weight",
    "charbonnier",
    "cross_entropy",
    "cross_sample_variance",
    "dice_loss",
    "discriminator_loss",
    "divergence_sums",
    "diversity",
    "draw_directions",
    "draw_places",
    "entropy_floor",
    "entropy_of_mean",
    "entropy_sums",
    "entropy_sums_and_probabilities",
    "equivariance",
    "exclusive_sums",
    "gain_over_mean",
    "generator_loss",
    "gradient_error",
    "gradient_penalty",
    "iic",
    "info_nce",
    "information_bound",
    "kernels_in_use",
    "mean_cross_entropy",
    "mean_entropy",
    "ms_ssim",
    "patch_targets",
    "pick",
    "plain_divergence_sums",
    "plain_entropy_sums",
    "plain_reconstruction_error",
    "reconstruction_error",
    "sigreg",
    "softmax_dice",
    "ssim",
    "symmetric_cross_entropy",
]
