"""Synthetic electron microscopy with truth: nerve tissue, nanoparticles on films, atomic lattices."""

from em_data.synthetic.config import SyntheticConfig
from em_data.synthetic.lattice import LatticeConfig, LatticeImage, render_lattice
from em_data.synthetic.particles import Micrograph, ParticlesConfig, render_particles
from em_data.synthetic.render import SyntheticBlock, render
from em_data.synthetic.tissue import CLASSES

__all__ = [
    "CLASSES",
    "LatticeConfig",
    "LatticeImage",
    "Micrograph",
    "ParticlesConfig",
    "SyntheticBlock",
    "SyntheticConfig",
    "render",
    "render_lattice",
    "render_particles",
]
