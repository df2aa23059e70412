"""Encoders and predictors for electron microscopy.

DenseEncoder: image -> codes of every place
SlicePredictor: codes of the neighbouring slices -> codes of the middle one
save, load: weights as config.json + model.safetensors
"""

from em_models.dense import DenseCodes, DenseEncoder, DenseEncoderConfig, count_parameters
from em_models.predictor import SlicePredictor, SlicePredictorConfig
from em_models.weights import load, save

__all__ = [
    "DenseCodes",
    "DenseEncoder",
    "DenseEncoderConfig",
    "SlicePredictor",
    "SlicePredictorConfig",
    "count_parameters",
    "load",
    "save",
]
