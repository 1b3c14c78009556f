"""The kernels in numpy float64, written for clarity: what every launch is compared with."""
