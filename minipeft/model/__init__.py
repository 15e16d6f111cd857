import os

# On the CPU, torch keeps the last 1,024 kernels that it made, one a shape. Packed batches hardly ever repeat a shape,
# so they would only fill the memory.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
