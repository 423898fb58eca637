"""The training of HuBERT and of k-means units on it."""
