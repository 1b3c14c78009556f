"""NVIDIA's run-time compiler: finding it, compiling sources with it, and reading what it made."""
