"""Data: the IDX reader, the data sets (MNIST lies in ``mnist/``), and photos of digits."""
