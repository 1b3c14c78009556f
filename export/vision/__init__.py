"""Vision tower and projector of a checkpoint as two ONNX graphs (docs/bundle.md, group `vision`).

`export.vision.trace` is the only part of the exporter that imports torch; `export.vision.stored` and
`export.vision.precision` work on finished graphs with numpy and onnx alone.
"""
