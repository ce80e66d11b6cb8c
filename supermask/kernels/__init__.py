"""C++ for what PyTorch takes too long for, and what builds it."""
