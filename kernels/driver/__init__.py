"""CUDA drivers behind one interface: cuda-bindings, pycuda, and an emulator on the CPU."""
