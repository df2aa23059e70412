"""Uneven brightness of whole images: background, charging, curtains of an ion beam.

Background and curtains are drawn for voxels of an endless plane, so that they look the same in crops
of any size; charging follows the image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from em_data.augment.blur import blur
from em_data.augment.noise import correlated, each
from em_data.augment.sampling import coarsen, refine

CHARGE_VX = 8  # charging is smooth, so it is made in pixels of as many voxels
HALO_VX = (8.0, 24.0)  # deviation of halos
STREAK = 3  # a streak falls to 1/e over as many deviations of its halo


def add_background(
    images: Tensor,
    strength: Tensor,
    gain: Tensor,
    waves: Tensor,
    wavelengths_vx: tuple[float, float],
) -> Tensor:
    """A sum of plane waves, the share `gain` of it multiplied, the rest added.

    Waves, unlike splines, have no power beyond their wavelength at all.

    Args:
        images: (N, Z, Y, X) in [0, 1].
        strength: (N,) deviation at middle grey.
        gain: (N,) in [0, 1].
        waves: (N, Z, K, 3) uniform numbers: wavelength, direction and phase of each.
        wavelengths_vx: least and largest; their logarithm is drawn evenly.
    """
    low, high = (math.log(one) for one in wavelengths_vx)
    frequency = torch.exp(-(low + (high - low) * waves[..., 0]))  # (N, Z, K) periods per voxel
    turn, phase = 2 * math.pi * waves[..., 1], 2 * math.pi * waves[..., 2]
    y = torch.arange(images.shape[2], device=images.device)
    x = torch.arange(images.shape[3], device=images.device)
    down = 2 * math.pi * (frequency * turn.sin())[..., None] * y + phase[..., None]  # (N, Z, K, Y)
    across = 2 * math.pi * (frequency * turn.cos())[..., None] * x  # (N, Z, K, X)
    field = torch.zeros_like(images)
    for k in range(waves.shape[2]):  # cos(a + b) = cos a cos b − sin a sin b
        a, b = down[:, :, k, :, None], across[:, :, k, None, :]
        field.addcmul_(a.cos(), b.cos()).addcmul_(a.sin(), b.sin(), value=-1)
    field *= each(strength, field) * math.sqrt(2 / waves.shape[2])
    # Multiplied by 2, an image has as much of the background at middle grey as if it was added.
    return images + field.mul_(
        torch.addcmul(1 - each(gain, field), images, each(gain, field), value=2)
    )


def add_charging(images: Tensor, strength: Tensor, size_vx: Tensor, streak: Tensor) -> Tensor:
    """Bright halos around what is brighter than most of its slice, dark streaks behind it along x.

    An insulator keeps electrons of the beam: it and its surroundings emit more, and the amplifier
    falls behind until the scan has passed.

    Args:
        images: (N, Z, Y, X) in [0, 1].
        strength: (N,) of the brightest halo of a slice.
        size_vx: (N,) deviation of the halos, within `HALO_VX`.
        streak: (N,) depth of streaks, as a share of the halos.
    """
    coarse = coarsen(images, CHARGE_VX)  # (N, Z, y, x)
    deviation, mean = torch.std_mean(coarse, (-2, -1), correction=0, keepdim=True)
    charge = (coarse - mean - deviation).clamp_(min=0).flatten(0, 1)  # (N · Z, y, x)
    sigma = (size_vx / CHARGE_VX).repeat_interleave(images.shape[1])  # (N · Z,)
    halo, behind = (
        field / field.amax((-2, -1), keepdim=True).clamp(min=1e-6)
        for field in (blur(charge, sigma, HALO_VX[1] / CHARGE_VX), _behind(charge, STREAK * sigma))
    )
    field = torch.addcmul(halo.view_as(coarse), behind.view_as(coarse), each(-streak, coarse))
    return refine(field * each(strength, coarse), CHARGE_VX, images.shape[2:]) + images


def add_curtains(
    images: Tensor,
    strength: Tensor,
    width_vx: Tensor,
    length_vx: Tensor,
    words: Tensor,
    *,
    most_vx: float,
) -> Tensor:
    """Stripes along y, where an ion beam milled more or less; few are much stronger than most.

    Going down by `length_vx`, one profile turns by a radian into another one.

    Args:
        images: (N, Z, Y, X) in [0, 1].
        strength: (N,) deviation of the logarithm of brightness.
        width_vx: (N,) distance across, at which the correlation of profiles falls to 1/e.
        length_vx: (N,)
        words: (N, 2) int32.
        most_vx: the largest width.
    """
    profiles = correlated(words, (images.shape[1], 2, images.shape[3]), width_vx, most_vx)
    profiles = profiles * profiles.abs().sqrt() / 1.263  # heavy tails, deviation 1
    profiles *= each(strength, profiles)
    y = torch.arange(images.shape[2], device=images.device)[:, None]
    turn = y / each(length_vx, images)  # (N, 1, Y, 1)
    stripes = turn.cos() * profiles[:, :, :1]
    return stripes.addcmul_(turn.sin(), profiles[:, :, 1:]).exp_().mul_(images)


def _behind(charge: Tensor, length: Tensor) -> Tensor:
    """What charge leaves behind on the way along x, falling to 1/e over `length`: (N, Y, X), (N,).

    Each round adds what lies twice as far behind as the round before it did.
    """
    decay = torch.exp(-1 / length)[:, None, None]
    total, step = charge.clone(), 1
    while step < charge.shape[-1]:
        total[..., step:] += decay**step * total[..., :-step].clone()
        step *= 2
    return total
