"""The paper's controls."""
