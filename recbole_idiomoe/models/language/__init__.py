"""What every language model recommender shares."""
