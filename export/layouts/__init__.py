"""One module per checkpoint layout: each reads configurations and headers into an `export.layouts.description`."""
