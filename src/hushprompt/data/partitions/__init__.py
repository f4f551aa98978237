"""How a data set is cut into clients."""
