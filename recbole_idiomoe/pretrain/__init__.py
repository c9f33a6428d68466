"""Training a small decoder from plain text: where the bundled language model comes from."""
