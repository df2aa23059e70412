"""Randomness as a function of place: hashes of integer coordinates and the smooth noise on them.

A random stream read in order ties a voxel to everything drawn before it. Here each number is a
hash of (seed, stream, integer coordinates) instead, so any box of an endless texture can be
computed alone and always has the same bits. Only operations that round the same way everywhere
(+, -, *, /, sqrt, comparisons) touch voxels, in an order that does not depend on the box.
"""

import math
import zlib
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float32]
Word = NDArray[np.uint32]

NORMAL_BITS = 12
# Standard deviation of quadratic B-spline interpolation of uniform numbers in [-1, 1):
# sqrt(1/3) from the numbers, 0.55 from the mean of the summed squared weights on each of 3 axes.
NOISE_STD = math.sqrt(0.55**3 / 3)


def hash_words(seed: int, stream: str, *coordinates: ArrayLike) -> Word:
    """Random 32-bit words for a stream at integer coordinates, which broadcast."""
    word = _mix(np.array([int(seed) ^ zlib.crc32(stream.encode())], np.uint32))
    for coordinate in coordinates:
        word = _mix(word ^ np.asarray(coordinate).astype(np.int64).astype(np.uint32))
    return word


def hash_uniform(seed: int, stream: str, *coordinates: ArrayLike) -> Float:
    """Random numbers in [0, 1), with the 24 bits that float32 holds exactly."""
    words = hash_words(seed, stream, *coordinates)
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def hash_normal(seed: int, stream: str, *coordinates: ArrayLike) -> Float:
    """Random normal numbers (mean 0, deviation 1), cut at the 1/8192 quantiles."""
    words = hash_words(seed, stream, *coordinates)
    words >>= np.uint32(32 - NORMAL_BITS)
    return _normal_quantiles().take(words.astype(np.intp))


def smooth_noise(
    seed: int,
    stream: str,
    *,
    origin_vx: Sequence[int],
    size_vx: Sequence[int],
    voxel_size_nm: Sequence[float],
    pitch_nm: float,
) -> Float:  # (Z, Y, X)
    """Smooth noise of mean 0 and deviation 1 at the voxel centres of a box.

    Random numbers on a lattice of `pitch_nm`, interpolated by quadratic B-splines, one axis
    after the other: x and y while the array is still small, z last.
    """
    nodes, weights = [], []
    for origin, size, voxel in zip(origin_vx, size_vx, voxel_size_nm, strict=True):
        place = (np.arange(origin, origin + size) + 0.5) * (voxel / pitch_nm)
        node = np.floor(place + 0.5).astype(np.int64)
        offset = (place - node).astype(np.float32)  # [-0.5, 0.5)
        low, high = np.float32(0.5) - offset, np.float32(0.5) + offset
        nodes.append(node)
        weights.append((low * low / 2, np.float32(0.75) - offset * offset, high * high / 2))

    lattice = [np.arange(node[0] - 1, node[-1] + 2) for node in nodes]
    values = hash_uniform(seed, stream, lattice[0][:, None, None], lattice[1][:, None], lattice[2])
    values = (values * 2 - 1) / np.float32(NOISE_STD)
    first = [node - node[0] for node in nodes]

    values = sum(  # (z nodes, y nodes, X)
        values[:, :, first[2] + step] * weights[2][step] for step in range(3)
    )
    values = sum(  # (z nodes, Y, X)
        values[:, first[1] + step] * weights[1][step][:, None] for step in range(3)
    )
    out = np.empty(tuple(size_vx), np.float32)
    scratch = np.empty(tuple(size_vx)[1:], np.float32)
    for z, node in enumerate(first[0]):
        np.multiply(values[node], weights[0][0][z], out=out[z])
        for step in (1, 2):
            np.multiply(values[node + step], weights[0][step][z], out=scratch)
            out[z] += scratch
    return out


def smooth_image(
    seed: int, stream: str, index: int, size_px: Sequence[int], pitch_px: float
) -> Float:  # (Y, X)
    """Smooth noise of mean 0 and deviation 1 of image `index` of a collection."""
    # Images lie four nodes apart on z, where they share none.
    return smooth_noise(
        seed,
        stream,
        origin_vx=(index, 0, 0),
        size_vx=(1, *size_px),
        voxel_size_nm=(4 * pitch_px, 1, 1),
        pitch_nm=pitch_px,
    )[0]


def gaussian_kernel(sigma_px: float) -> Float:
    """Gaussian weights of sum 1 out to three deviations; a single 1 for sigma 0."""
    radius = math.ceil(3 * sigma_px)
    if radius == 0:
        return np.ones(1, np.float32)
    weights = [math.exp(-0.5 * (step / sigma_px) ** 2) for step in range(-radius, radius + 1)]
    return (np.array(weights) / math.fsum(weights)).astype(np.float32)


def blur_valid(image: Float, kernel: Float, axis: int) -> Float:
    """Convolution along one axis with a symmetric kernel, without padding."""
    radius = len(kernel) // 2
    image = np.moveaxis(image, axis, 0)
    size = len(image) - 2 * radius
    out = image[radius : radius + size] * kernel[radius]
    for step in range(1, radius + 1):
        pair = image[radius - step :][:size] + image[radius + step :][:size]
        pair *= kernel[radius + step]
        out += pair
    return np.moveaxis(out, 0, axis)


def blur_image(image: Float, sigma_px: float) -> Float:  # (Y, X)
    """Gaussian blur of an image that is mirrored at its borders."""
    kernel = gaussian_kernel(sigma_px)
    padded = np.pad(image, len(kernel) // 2, mode="symmetric")
    return blur_valid(blur_valid(padded, kernel, 0), kernel, 1)


def _mix(word: Word) -> Word:
    """A bijection of 32-bit words that spreads each bit over all; works in place.

    The constants are those of lowbias32 (C. Wellons, "Prospecting for hash functions", 2018).
    """
    scratch = word >> np.uint32(16)
    word ^= scratch
    word *= np.uint32(0x7FEB352D)
    np.right_shift(word, np.uint32(15), out=scratch)
    word ^= scratch
    word *= np.uint32(0x846CA68B)
    np.right_shift(word, np.uint32(16), out=scratch)
    word ^= scratch
    return word


@cache
def _normal_quantiles() -> Float:
    normal = NormalDist()
    steps = 2**NORMAL_BITS
    return np.array([normal.inv_cdf((i + 0.5) / steps) for i in range(steps)], np.float32)
