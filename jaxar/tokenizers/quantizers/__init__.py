"""From vectors to codes and back."""
