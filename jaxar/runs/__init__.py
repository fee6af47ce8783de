"""What is done with a model, one file for each verb; the command line calls the same functions."""
