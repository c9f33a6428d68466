"""What is added to RecBole's own evaluation."""
