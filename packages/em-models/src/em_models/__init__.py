"""Encoders and predictors for electron microscopy.

DenseEncoder: image -> codes of every place
SlicePredictor: codes of the neighbouring slices -> codes of the middle one
UNet, UNet3d, HrNet, TimmHrNet: image -> logits of every class at every pixel
PatchDiscriminator: image -> how real each of its patches looks
Vit3d, Mae: volume -> a vector for every patch, learned by filling in hidden ones
BatchNorm: batch norm over the batch of several processes
save, load: weights as config.json + model.safetensors
"""

from em_models.dense import DenseEncoder, DenseEncoderConfig, count_parameters, layout
from em_models.filter_bank import FilterBank, FilterBankConfig
from em_models.geometry import Geometry
from em_models.head import DenseCodes
from em_models.hrnet import HrNet, HrNetConfig, TimmHrNet, TimmHrNetConfig
from em_models.mae import DecoderConfig, Mae, MaeConfig, mae_size
from em_models.masks import Masks, draw_masks
from em_models.norm import BatchNorm
from em_models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from em_models.predictor import SlicePredictor, SlicePredictorConfig
from em_models.projector import Projector, ProjectorConfig
from em_models.timm_encoder import TimmEncoder, TimmEncoderConfig
from em_models.unet import UNet, UNetConfig, effective_receptive_field
from em_models.unet3d import UNet3d, UNet3dConfig
from em_models.vit3d import Vit3d, Vit3dConfig, Voxels, vit3d_size
from em_models.weights import load, read_description, save
from em_models.windows import dense_features

__all__ = [
    "BatchNorm",
    "DecoderConfig",
    "DenseCodes",
    "DenseEncoder",
    "DenseEncoderConfig",
    "FilterBank",
    "FilterBankConfig",
    "Geometry",
    "HrNet",
    "HrNetConfig",
    "Mae",
    "MaeConfig",
    "Masks",
    "PatchDiscriminator",
    "PatchDiscriminatorConfig",
    "Projector",
    "ProjectorConfig",
    "SlicePredictor",
    "SlicePredictorConfig",
    "TimmEncoder",
    "TimmEncoderConfig",
    "TimmHrNet",
    "TimmHrNetConfig",
    "UNet",
    "UNet3d",
    "UNet3dConfig",
    "UNetConfig",
    "Vit3d",
    "Vit3dConfig",
    "Voxels",
    "count_parameters",
    "dense_features",
    "draw_masks",
    "effective_receptive_field",
    "layout",
    "load",
    "mae_size",
    "read_description",
    "save",
    "vit3d_size",
]
