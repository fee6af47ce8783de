"""What the network may see of the others when an entity is predicted, and the walk over them."""
