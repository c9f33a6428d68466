"""Training of a small decoder on plain text, by which the bundled language model was made."""
