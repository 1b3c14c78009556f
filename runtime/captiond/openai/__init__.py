"""The OpenAI API over the daemon's model: ``POST /v1/chat/completions`` and ``GET /v1/models``."""
