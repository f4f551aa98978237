"""The data sets that the package knows, one file each."""
