"""Training: RecBole's loop around Accelerate's steps."""
