"""Integer weights, their layouts, and the kernels that read them; knows numpy and driver libraries only."""
