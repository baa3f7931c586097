"""A model folder read without torch: what it holds, and whether it can be served.

    checkpoint ─┬─ model_config   config.json, by the rows of architectures.py; rope.py beside it
                ├─ quantization   how linears are packed, by packings.py of which tensors
                └─ weights        the headers of the files, compared with what both of them ask for

Doctor and engine read the same objects, and reading is what refuses: so what one passes the other
cannot refuse, and both use the same words. A new architecture is a row in architectures.py, a new
packing one in quantization.py and, if its tensors are others, in packings.py.
"""
