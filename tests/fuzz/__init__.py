"""Fuzzing of everything of ours that reads what others wrote. `targets` says what, `mutations` how, `run` judges."""
