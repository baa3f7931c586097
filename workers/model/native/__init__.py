"""Functions in C for CPUs, compiled where the engine runs; without a compiler, torch does it.

vectors.h     floats by sixteens, and the model's numbers
attention.c   attention of single tokens over blocks in place
int4.c        products with weights of 4 bits
layers.c      norms, rotation and SiLU between the products
library.py    compiles and loads them
native.py     calls them with tensors
"""
