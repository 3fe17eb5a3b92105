"""Deep metric learning end to end; each folder is one room of the house the README draws."""
