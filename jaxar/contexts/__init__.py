"""What an entity is conditioned on, in training and in sampling."""
