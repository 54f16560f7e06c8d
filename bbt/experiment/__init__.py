"""What every method is given, and what it gives back."""
