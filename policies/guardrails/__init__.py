"""What must hold of everything that the program declares, as plain functions over its resources."""
