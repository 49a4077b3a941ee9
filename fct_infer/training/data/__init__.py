"""Images the trainers learn from."""
