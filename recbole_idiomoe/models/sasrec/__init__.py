"""SASRec with cross entropy or a sampled softmax."""
