"""The FP8 format: e4m3's type, its largest number, and the least scale of a row."""

import torch

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
# A row of zeros must not have the scale 0.
LEAST = 1e-12
