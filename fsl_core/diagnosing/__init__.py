"""What adaptation does to a trained network: how features move, and which layers need to."""
