"""From a trained model to label maps at the speed of the hardware."""
from mmseg_bisenetv2.deploy.predictor import Predictor

__all__ = ['Predictor']
