"""From a camera to frames in shared memory: child processes that capture, and what starts and watches them.

`ring` is the memory, `launcher` starts children, `child` and `gst_child` are one attempt at one source each.
"""
