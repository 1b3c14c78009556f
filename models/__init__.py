"""The torch reference of the vision-language models that a bundle is built from: LLaVA and NVILA.

Needed at build time alone; ``runtime`` never imports it. Start at ``models.checkpoint.load_checkpoint``.
"""
