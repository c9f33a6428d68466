"""From RecBole's atomic files to token sequences."""
