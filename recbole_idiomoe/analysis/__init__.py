"""What a trained model's parts do: ``python -m recbole_idiomoe.analysis NAME FOLDER``."""
