"""Settings of every test: one thread for each test process, because there is one for each core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported, here and in children
