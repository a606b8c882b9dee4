"""What training scripts import beside models and schedulers: the weight average, seeding, signal-to-noise ratios."""

from .randomness import set_seed
from .training.ema import EMAModel
from .training.objectives import compute_snr

__all__ = ["EMAModel", "compute_snr", "set_seed"]
