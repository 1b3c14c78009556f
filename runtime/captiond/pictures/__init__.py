"""JPEG pictures of frames, scene change, and the images of requests: made in children, asked for by the main process.

`client.Pictures` is what the daemon's main process uses; it loads neither numpy nor OpenCV. Two children do the work,
each started when it is first needed: "camera" holds the memory of the frames and draws, "uploads" decodes what
strangers send and can see no frame. This file imports nothing: the children do without what the main process needs.
"""
