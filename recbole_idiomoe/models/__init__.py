"""One file or folder for each method, and the registry that names them."""
