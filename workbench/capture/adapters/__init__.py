"""How a model's routers are found, and how what they return is read."""
