"""e4m3 numbers: their type, their largest, and the least a row's scale is made of."""

import torch

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
# A row of zeros must not have the scale 0.
LEAST = 1e-12
