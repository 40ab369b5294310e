"""Defences that speak to the model: the safety prefix and its attentive calibration."""

from .safety_prefix import DEFAULT_PREFIX, AttentiveCalibration, SafetyPrefix

__all__ = ["DEFAULT_PREFIX", "AttentiveCalibration", "SafetyPrefix"]
