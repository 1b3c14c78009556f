"""Training, evaluation and packaging of the demo models: see scripts/train_demo.py."""
